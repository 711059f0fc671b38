"""What rounding costs a small model that has learned something: docstrings, byte by byte."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hfaccel
from corpus import texts as docstrings
from hfaccel.engine.kernels import kernels_problem

LENGTH, BATCH, STEPS = 128, 16, 250
SIZES = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4)

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)


@pytest.fixture(scope="module")
def texts():
    """Rows of bytes: to learn from, and to be tried on."""
    numbers = torch.tensor(list("\n".join(docstrings(3000)).encode()), dtype=torch.int64)
    rows = numbers[: len(numbers) // LENGTH * LENGTH].view(-1, LENGTH)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return rows[:-64], rows[-64:]


@pytest.fixture(scope="module")
def trained(texts):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=2, **SIZES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        rows = texts[0][torch.arange(step * BATCH, (step + 1) * BATCH) % len(texts[0])]
        model(rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def perplexity(model, rows):
    with torch.inference_mode():
        return model(rows, labels=rows).loss.exp().item()


def test_the_model_has_learned(trained, texts):
    assert perplexity(trained, texts[1]) < 12  # 256 before


@pytest.mark.parametrize(
    ("quantization", "bound"), [("int8-weight-only", 0.01), ("int4-weight-only", 0.05), ("int8", 0.05)]
)
def test_rounding_costs_little(trained, texts, quantization, bound):
    wanted = perplexity(trained, texts[1])
    fast = hfaccel.optimize(trained, quantization=quantization)
    assert abs(perplexity(fast, texts[1]) / wanted - 1) < bound
    assert not hfaccel.report(fast).stock_calls

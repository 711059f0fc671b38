"""What rounding costs a small model that has learned something: docstrings, byte by byte."""

from __future__ import annotations

import copy

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


def with_uneven_inputs(model):
    """The same function: what norms give is larger in some channels, and the weights that read them are
    smaller there, as in models with outliers."""
    model = copy.deepcopy(model)
    factors = torch.ones(SIZES["hidden_size"])
    factors[::16] = 8.0
    with torch.no_grad():
        for layer in model.model.layers:
            attention, ffn = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (ffn.gate_proj, ffn.up_proj)),
            ):
                norm.weight *= factors
                for reader in readers:
                    reader.weight /= factors
    return model


@pytest.mark.parametrize(("change", "part"), [(copy.copy, 1.5), (with_uneven_inputs, 0.7)])
def test_what_a_sample_does_for_int4(trained, texts, change, part):
    """Where inputs are alike it does little; where some are larger, their weights are rounded with care."""
    model, sample = change(trained), {"input_ids": texts[0][:32]}
    wanted = perplexity(model, texts[1])
    without, sampled = (
        perplexity(
            hfaccel.optimize(model, quantization="int4-weight-only", backend="torch", sample=given), texts[1]
        )
        for given in (None, sample)
    )
    assert sampled - wanted < part * (without - wanted)


@pytest.mark.parametrize(
    ("quantization", "bound"), [("int8-weight-only", 0.01), ("int4-weight-only", 0.05), ("int8", 0.05)]
)
def test_rounding_costs_little(trained, texts, quantization, bound):
    wanted = perplexity(trained, texts[1])
    fast = hfaccel.optimize(trained, quantization=quantization)
    assert abs(perplexity(fast, texts[1]) / wanted - 1) < bound
    assert not hfaccel.report(fast).stock_calls

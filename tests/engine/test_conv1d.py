"""GPT-2's Conv1D, whose weight is (in_features, out_features), packed as nn.Linear is.

What both do alike is in test_packed.py."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from encoders import cosines, random_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

import hfaccel
from hfaccel import engine
from hfaccel.engine.kernels import Kind, kernels_problem
from hfaccel.engine.weights.linear import PackedModule, linear_problem, pack, packed_class, unpack
from hfaccel.engine.weights.packed import PackedWeight, TransposedWeight
from hfaccel.memory import Arena

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

EACH = pytest.mark.parametrize(
    "options", [{}, {"dtype": torch.bfloat16}, {"quantization": "int8"}], ids=["float32", "bfloat16", "int8"]
)


def packed_conv1d(inputs=96, outputs=160, kind=Kind.FLOAT32):
    torch.manual_seed(0)
    layer = Conv1D(outputs, inputs)
    with torch.no_grad():
        layer.bias.normal_()
    values = layer.weight.detach().clone()
    size = TransposedWeight.layout_of(kind, layer.weight.shape).nbytes
    assert pack(layer, Arena(size, pages="default"), kind) == ""
    return layer, values


def make_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=500, n_embd=64, n_layer=2, n_head=4, n_positions=64, eos_token_id=1)
    return random_vectors(GPT2LMHeadModel(config))


IDS = torch.randint(5, 500, (2, 9), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


sizes = st.integers(1, 200)


@given(sizes, sizes)
@settings(max_examples=40)
def test_unpacking_gives_the_same_bits(inputs, outputs):
    layer, values = packed_conv1d(inputs, outputs)
    assert torch.equal(layer.weight.unpack(), values) and layer.weight.unpack().is_contiguous()
    assert layer.weight.shape == (inputs, outputs)


@given(st.integers(1, 9), sizes, sizes)
@settings(max_examples=40)
def test_results_equal_stock(tokens, inputs, outputs):
    layer, values = packed_conv1d(inputs, outputs)
    given = torch.randn(2, tokens, inputs)
    with torch.inference_mode():
        expected = torch.addmm(layer.bias, given.view(-1, inputs), values).view(2, tokens, outputs)
        torch.testing.assert_close(layer(given), expected, rtol=1e-5, atol=1e-5)


def test_it_stays_what_it_was():
    layer = Conv1D(160, 96)
    parameter, optimizer = layer.weight, torch.optim.SGD(layer.parameters(), lr=0.1)
    values = parameter.detach().clone()
    pack(layer, Arena(1 << 20, pages="default"))
    assert layer.weight is parameter is optimizer.param_groups[0]["params"][0]
    assert (
        isinstance(layer, Conv1D)
        and isinstance(layer, PackedModule)
        and repr(layer) == "Conv1D(nf=160, nx=96)"
    )
    assert isinstance(parameter, PackedWeight) and parameter.requires_grad
    unpack(layer)
    assert type(layer) is Conv1D and layer.weight is parameter and torch.equal(parameter, values)
    assert type(parameter) is nn.Parameter and parameter.is_contiguous()


def through_torch_save(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_torch_save])
def test_copies_are_packed_and_independent(way, kind):
    layer, _ = packed_conv1d(kind=kind)
    values = layer.weight.detach().clone()
    other = way(layer)
    assert isinstance(other, PackedModule) and type(other.weight) is TransposedWeight
    torch.testing.assert_close(other.weight.detach().clone(), values, rtol=0, atol=1e-6)
    with torch.no_grad():
        other.weight.zero_()
    assert torch.equal(layer.weight, values)


def test_wrong_and_empty_input_is_treated_as_stock_does():
    layer, _ = packed_conv1d()
    assert layer(torch.empty(0, 96)).shape == (0, 160)
    for wrong in (torch.randn(2, 95), torch.randn(2, 96, dtype=torch.float64)):
        with pytest.raises(RuntimeError):
            layer(wrong)


def test_what_is_left_alone():
    assert "narrower than 64" in linear_problem(Conv1D(300, 8))
    assert packed_class(type("Other", (Conv1D,), {})(8, 8)) is None
    assert "not a plain nn.Linear" in linear_problem(type("Other", (Conv1D,), {})(96, 96))


def test_a_weight_of_both_orientations_gives_equal_results():
    """Tied to an nn.Linear, which reads it the other way round."""
    model = nn.ModuleDict({"conv": Conv1D(96, 96), "linear": nn.Linear(96, 96)}).eval()
    model["linear"].weight = model["conv"].weight
    given = torch.randn(4, 96)
    with torch.inference_mode():
        expected = [part(given) for part in model.values()]
        fast = hfaccel.optimize(model)
        for part, wanted in zip(fast.values(), expected, strict=True):
            torch.testing.assert_close(part(given), wanted, rtol=0, atol=1e-5)


# A whole model


@EACH
def test_gpt2(options):
    stock = make_gpt2()
    expected, before = logits(stock), {name: value.clone() for name, value in stock.state_dict().items()}
    fast = hfaccel.optimize(stock, **options)
    packed = [module for module in fast.modules() if isinstance(module, PackedModule)]
    assert len(packed) == 9  # with the head, which is tied to the embedding
    got = logits(fast)
    if options:
        assert cosines(got.flatten(0, 1), expected.flatten(0, 1)).min() > 0.99
    else:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        torch.testing.assert_close(logits(other), got, rtol=0, atol=1e-4)
    hfaccel.restore(fast)  # in float32 for both, which share their weights
    assert not any(isinstance(module, PackedModule) for each in (fast, stock) for module in each.modules())
    assert all(torch.equal(value, before[name]) for name, value in stock.state_dict().items())
    torch.testing.assert_close(logits(stock), expected, rtol=0, atol=1e-6)


def test_gpt2_without_a_head_has_layers_to_pack():
    model = make_gpt2().transformer
    fast = hfaccel.optimize(model)
    assert sum(isinstance(module, PackedModule) for module in fast.modules()) == 8
    assert hfaccel.report(fast).backend == "torch"


@EACH
def test_gpt2_is_saved_and_loaded(options, tmp_path):
    fast = hfaccel.optimize(make_gpt2(), **options)
    hfaccel.save(fast, tmp_path / "model")
    loaded = hfaccel.load(tmp_path / "model")
    assert torch.equal(logits(loaded), logits(fast))
    assert sum(isinstance(module, PackedModule) for module in loaded.modules()) == 9
    assert engine.plan_of(loaded).steps == engine.plan_of(fast).steps


def test_generated_text_is_equal():
    stock = make_gpt2()
    fast = hfaccel.optimize(copy.deepcopy(stock))
    with torch.inference_mode():
        expected, got = (
            each.generate(input_ids=IDS, max_new_tokens=8, do_sample=False, pad_token_id=0)
            for each in (stock, fast)
        )
    assert torch.equal(got, expected)

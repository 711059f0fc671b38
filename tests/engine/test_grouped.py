"""Weights in groups of 8 and 4 bits: their rounding, their life as parameters, and what is multiplied."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import needs_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import hfaccel
from hfaccel.engine.kernels import Activation, Kind, kernels
from hfaccel.engine.weights import groups
from hfaccel.engine.weights.linear import linear
from hfaccel.engine.weights.packed import PackedWeight, TransposedWeight
from hfaccel.errors import UsageError
from hfaccel.precision import QUANTIZED, Precision

ASKED = (Kind.INT8_WEIGHT_ONLY, Kind.INT4_WEIGHT_ONLY)  # those that optimize() knows
E2M1 = Kind.E2M1_GROUPS_OF_32
GROUPED = (*ASKED, Kind.INT8_GROUPS_OF_32, Kind.INT4_GROUPS_OF_32, E2M1, Kind.INT8_GROUPS_OF_16)
BITS = dict(zip(GROUPED, (8.5, 4.5, 9, 5, 5, 10), strict=True))
# share of uniform weights' spread, and of that of normally distributed ones
ROUNDED = {kind: 0.004 if kind.bits == 8 else 0.11 if kind is E2M1 else 0.068 for kind in GROUPED}
NORMAL = {kind: 0.0055 if kind.bits == 8 else 0.12 if kind is E2M1 else 0.086 for kind in GROUPED}
SMALL = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_hidden_layers": 2}

pytestmark = needs_kernels


def relative(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, num_key_value_heads=2, **SMALL, **more)).eval()


@pytest.mark.parametrize("kind", GROUPED)
def test_what_rounding_loses(kind):
    torch.manual_seed(0)
    even, normal = torch.rand(256, 1024) - 0.5, torch.randn(256, 1024)
    assert relative(PackedWeight.pack(even, None, kind).unpack(), even) < ROUNDED[kind]
    assert relative(PackedWeight.pack(normal, None, kind).unpack(), normal) < NORMAL[kind]


@pytest.mark.parametrize("kind", GROUPED)
def test_what_a_weight_takes_up(kind):
    weight = PackedWeight.pack(torch.randn(512, 1024), None, kind)
    assert weight.memory.numel() * 8 == 512 * 1024 * BITS[kind]


@pytest.mark.parametrize("kind", GROUPED)
def test_groups_of_one_value(kind):
    """Zeros stay zero, and a constant is as near as bfloat16 comes to it."""
    values = torch.zeros(64, 5 * kind.group + 5)
    values[1], values[2], values[3, 70] = 0.3, -7e4, 1.0
    got = PackedWeight.pack(values, None, kind).unpack()
    torch.testing.assert_close(got[1:], values[1:], rtol=2**-8, atol=2**-8)
    assert got[0].eq(0).all() and got[4:].eq(0).all()


@pytest.mark.parametrize("kind", GROUPED)
def test_values_that_are_no_numbers(kind):
    values = torch.randn(64, 2 * kind.group)
    values[3, 7] = torch.nan
    got = PackedWeight.pack(values, None, kind).unpack()
    assert (
        got[3, : kind.group].isnan().any()
        and got[3, kind.group :].isfinite().all()
        and got[4:].isfinite().all()
    )


@pytest.mark.parametrize("kind", GROUPED)
def test_importance(kind):
    """Errors that count more become smaller, at the cost of others."""
    values, importance = torch.randn(64, 512), torch.ones(512)
    importance[::16] = 100.0

    def error(words):
        return (groups.values_of(words, kind, 512, torch.float32) - values)[:, ::16].norm()

    weighted = groups.round_groups(values, kind, importance=importance)
    assert error(weighted) < error(groups.round_groups(values, kind))


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(GROUPED),
    shape=st.tuples(st.integers(1, 150), st.integers(1, 300)),
    count=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_a_product_of_any_shape(kind, shape, count, seed):
    torch.manual_seed(seed)
    dense, rows, bias = torch.randn(shape), torch.randn(count, shape[1]), torch.randn(shape[0])
    packed = PackedWeight.pack(dense, None, kind)
    values = packed.unpack()
    assert relative(values, dense) < 3 * NORMAL[kind]
    wanted = nn.functional.gelu(nn.functional.linear(rows, values, bias))
    got = linear(rows, packed, bias, Activation.GELU)
    size = rows.norm(dim=1, keepdim=True) * values.norm(dim=1)
    assert ((got - wanted).abs() <= 0.02 * size + 1e-5).all()  # what the rounding of activations costs
    again = PackedWeight.pack(values, None, kind, packed._factors())
    assert again.unpack().equal(values)


@pytest.mark.parametrize("kind", GROUPED)
def test_an_outlier_costs_its_own_group_alone(kind):
    torch.manual_seed(0)
    packed = PackedWeight.pack(torch.randn(64, 4 * kind.group), None, kind)
    rows = torch.randn(3, 4 * kind.group)
    rows[:, : kind.group] = 0
    spiked = rows.clone()
    spiked[:, 3] = 127.0 * 64  # whole steps: without any rounding
    added = linear(spiked, packed, None) - linear(rows, packed, None)
    wanted = (127.0 * 64 * packed.unpack()[:, 3]).expand(3, -1)
    torch.testing.assert_close(added, wanted, rtol=1e-5, atol=0.02)


@pytest.mark.parametrize("kind", GROUPED)
def test_parts_of_a_joint_projection(kind):
    torch.manual_seed(0)
    weight, rows = PackedWeight.pack(torch.randn(96, 130), None, kind), torch.randn(2, 130)
    whole, part = linear(rows, weight, None), torch.empty(2, 32)
    kernels().linear(1, weight.matrix(None, slice(32, 64)), 0, rows.data_ptr(), part.data_ptr(), 2)
    assert part.equal(whole[:, 32:64])


@pytest.mark.parametrize("cls", [PackedWeight, TransposedWeight])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", GROUPED)
def test_copies_are_equal(kind, dtype, cls):
    torch.manual_seed(0)
    weight = cls.pack(nn.Parameter(torch.randn(96, 200).to(dtype)), None, kind)
    for copied in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert copied.kind is kind and copied.dtype is dtype
        assert copied.memory.equal(weight.memory)


@pytest.mark.parametrize("kind", ASKED)
def test_training_and_back(kind):
    fast = hfaccel.optimize(llama(), quantization=kind.label)
    layer = fast.model.layers[0].mlp.up_proj
    before = layer.weight.memory.clone()
    fast.train()
    assert not isinstance(layer.weight, PackedWeight)
    fast.eval()
    assert layer.weight.memory.equal(before)


@pytest.mark.parametrize("kind", GROUPED)
def test_changes_in_place_are_rounded(kind):
    weight = PackedWeight.pack(torch.randn(64, 64), None, kind)
    with torch.no_grad():
        weight.mul_(2).add_(1)
        assert relative(weight.unpack(), weight + 0) == 0
        weight.zero_()
        assert weight.unpack().eq(0).all()


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("quantization", QUANTIZED[1:])
def test_a_decoder(quantization, tie):
    stock = llama(tie_word_embeddings=tie)
    fast = hfaccel.optimize(stock, quantization=quantization)
    kind = Kind.of(quantization)
    linears = [module for module in fast.modules() if isinstance(module, nn.Linear)]
    packed = [module for module in linears if isinstance(module.weight, PackedWeight)]
    assert all(module.weight.kind is kind for module in packed)
    assert packed == linears
    assert not isinstance(fast.model.embed_tokens.weight, PackedWeight)  # its rows are looked up as they were
    assert hfaccel.report(fast).stock_calls == {}
    ids = torch.randint(300, (1, 9))
    with torch.inference_mode():
        wanted = unrounded(fast, stock)(ids).logits
        got = fast(ids).logits
        assert relative(got, wanted) < 0.03  # activations
        assert fast.generate(ids, max_new_tokens=4, do_sample=False).shape == (1, 13)


def unrounded(fast, stock):
    """The stock model with the rounded values of the fast one."""
    other = copy.deepcopy(stock)
    if hasattr(other, "lm_head"):  # an embedding that was tied to it keeps its values
        other.lm_head.weight = nn.Parameter(other.lm_head.weight.detach().clone())
    other.load_state_dict(fast.state_dict())
    return other


@pytest.mark.parametrize("quantization", QUANTIZED[1:])
def test_conv1d_and_encoders(quantization):
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=128, n_layer=2, n_head=4, vocab_size=300)).eval()
    bert = BertModel(BertConfig(vocab_size=300, **SMALL)).eval()
    ids = torch.randint(300, (2, 9))
    for stock in (gpt2, bert):
        fast = hfaccel.optimize(stock, quantization=quantization)
        with torch.inference_mode():
            assert relative(fast(ids)[0], unrounded(fast, stock)(ids)[0]) < 0.03


@pytest.mark.parametrize("quantization", QUANTIZED[1:])
def test_saved_and_loaded(tmp_path, quantization):
    fast = hfaccel.optimize(llama(), quantization=quantization)
    with pytest.warns(RuntimeWarning, match="not loaded from a checkpoint"):
        hfaccel.save(fast, tmp_path / "saved")
    loaded = hfaccel.load(tmp_path / "saved")
    ids = torch.randint(300, (1, 9))
    with torch.inference_mode():
        assert loaded(ids).logits.equal(fast(ids).logits)
    assert type(loaded.model.layers[0].mlp.up_proj.weight) is PackedWeight


def test_names():
    for name in QUANTIZED:
        assert Precision(name).arguments() == {"quantization": name}
        assert Kind.of(name).label == name
    with pytest.raises(UsageError, match=r"'int8-weight-only', 'int4-weight-only'\), but got 'int4'"):
        hfaccel.optimize(nn.Linear(64, 64), quantization="int4")

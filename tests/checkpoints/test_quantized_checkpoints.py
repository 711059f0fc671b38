"""Quantized checkpoints are computed from their own numbers."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import needs_kernels
from quantized import Awq, Gptq, IntxUnpackedToInt8Tensor, compressed, llama, torchao, with_layers

import hfaccel
from hfaccel.engine.kernels import Kind
from hfaccel.engine.weights.linear import PackedModule
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.errors import ModelError
from hfaccel.saving.source import contents

BYTES = SimpleNamespace(type="int", num_bits=8, dynamic=True)
FORMATS = {
    "gptq": Gptq,
    "gptq, first format": partial(Gptq, format=1, symmetric=False),
    "gptq, 8 bits, groups of 128": partial(Gptq, bits=8, group=128),
    "gptq, whole rows": partial(Gptq, group=-1),
    "gptq, groups of 32": partial(Gptq, group=32),
    "gptq, 8 bits, groups of 96": partial(Gptq, bits=8, group=96),
    "awq": partial(Awq, symmetric=False),
    "awq, groups of 128": partial(Awq, group=128),
    "compressed": compressed,
    "compressed, asymmetric": partial(compressed, symmetric=False),
    "compressed, 8 bits for a channel": partial(compressed, bits=8, group=-1),
    "compressed, inputs of 8 bits": partial(compressed, bits=8, group=-1, inputs=BYTES),
    "torchao": torchao,
    "torchao, inputs of 8 bits": partial(torchao, act_quant_kwargs=True),
    "torchao, 4 bits, asymmetric": partial(
        torchao, bits=4, group=64, symmetric=False, cls=IntxUnpackedToInt8Tensor, target_dtype=torch.int4
    ),
}

pytestmark = needs_kernels


def ids(count=24):
    return torch.randint(0, 300, (2, count), generator=torch.Generator().manual_seed(0))


def relative(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def quantized_linears(model):
    return [module for module in model.model.layers.modules() if isinstance(module, PackedModule)]


def said(model):
    return [line.reason for line in hfaccel.report(model).outcomes if "quantized" in line.subject]


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@torch.inference_mode()
def test_logits(make):
    """As from the exact values, but for the rounding of inputs to 8 bits."""
    model = with_layers(llama(), make)
    fast = hfaccel.optimize(model)
    assert relative(fast(ids()).logits, model(ids()).logits) < 0.02
    assert len(quantized_linears(fast)) == 14 and not quantized_linears(model)
    report = hfaccel.report(fast)
    assert any(line.applied and line.subject == "Llama layer" for line in report.outcomes)
    assert not report.stock_calls


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_numbers_stay_whole(make):
    """Only scales are rounded, to bfloat16."""
    linear = llama().model.layers[0].mlp.down_proj
    module = make(linear)
    model = with_layers(llama(), make)
    weight = hfaccel.optimize(model).model.layers[0].mlp.down_proj.weight
    exact = module.exact[0]
    assert relative(weight.unpack(), exact) < 2**-8
    steps = (1 << weight.kind.bits) - 1
    assert (weight.unpack() - exact).abs().max() < 0.6 * 2 * exact.abs().max() / steps


def test_a_symmetric_weight_has_exactly_its_values_with_rounded_scales():
    module = Gptq(llama().model.layers[0].mlp.down_proj)
    numbers, scales = _numbers_of(module)
    weight = hfaccel.optimize(with_layers(llama(), Gptq)).model.layers[0].mlp.down_proj.weight
    assert weight.unpack().equal(scales.bfloat16().float().repeat_interleave(64, 1) * (numbers - 8))


def _numbers_of(module):
    shifts = torch.arange(8) * 4
    numbers = (module.qweight.t()[..., None] >> shifts & 15).flatten(1)
    return numbers, module.scales.t()


@pytest.mark.parametrize(
    ("make", "part"),
    [(Gptq, 0.7), (partial(Gptq, symmetric=False), 1.5), (partial(Gptq, bits=8, symmetric=False), 1.5)],
)
@torch.inference_mode()
def test_rounding_scales_costs_no_more_than_computing_in_bfloat16(make, part):
    """Of weights with zero points, half as much again at most: minima are rounded too."""
    model = with_layers(llama(), make)
    wanted = model(ids()).logits
    values = hfaccel.restore(hfaccel.optimize(model))
    of_scales = relative(values(ids()).logits, wanted)
    of_bfloat16 = relative(model.bfloat16()(ids()).logits.float(), wanted)
    assert 0 < of_scales < part * of_bfloat16


def test_what_the_weights_take_up():
    model = with_layers(llama(), Gptq)
    gone = [weakref.ref(module) for module in model.modules() if isinstance(module, Gptq)]
    fast = hfaccel.optimize(model, inplace=True)
    gc.collect()
    assert not [ref for ref in gone if ref() is not None]
    weights = [module.weight for module in quantized_linears(fast)]
    assert all(weight.kind is Kind.INT4_WEIGHT_ONLY for weight in weights)
    assert all(weight.memory.numel() == weight.numel() * 9 // 16 for weight in weights)
    assert not [
        each for each in fast.model.layers.parameters() if type(each) is not PackedWeight and each.dim() > 1
    ]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (partial(Gptq, group=16), "its groups have 16 inputs"),
        (partial(Gptq, bits=2), "2 bits"),
    ],
)
@torch.inference_mode()
def test_what_stays_as_it_is(make, reason):
    model = with_layers(llama(), make)
    fast = hfaccel.optimize(model)
    assert all(reason in line for line in said(fast)) and said(fast)
    torch.testing.assert_close(fast(ids()).logits, model(ids()).logits)


def damaged(linear, what):
    module = Gptq(linear)
    what(module)
    return module


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (lambda module: module.g_idx.copy_(module.g_idx.flip(0)), "desc_act"),
        (lambda module: setattr(module, "qweight", module.qweight[:, :-8]), "before its first call"),
        (lambda module: setattr(module, "scales", module.scales[:-1]), "must be of the shape"),
        (lambda module: module.train(), "training"),
        (lambda module: module.register_forward_hook(print), "hooks"),
    ],
)
def test_modules_that_cannot_be_read(what, reason):
    fast = hfaccel.optimize(with_layers(llama(), partial(damaged, what=what)), inplace=True)
    assert not quantized_linears(fast) and all(reason in line for line in said(fast)) and said(fast)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (partial(compressed, group=16), "its groups have 16 inputs"),
        (partial(compressed, output_activations=BYTES), "results are rounded"),
        (
            partial(compressed, inputs=SimpleNamespace(type="float", num_bits=8, dynamic=True)),
            "inputs are rounded",
        ),
    ],
)
def test_a_model_whose_quantizer_would_expand_it_is_left_alone(make, reason):
    fast = hfaccel.optimize(with_layers(llama(), make))
    (line,) = [line.reason for line in hfaccel.report(fast).outcomes if "torch" in line.subject]
    assert reason in line and "dequantize=True" in line
    assert not [each for each in fast.modules() if isinstance(each, PackedModule)]


def test_float16():
    fast = hfaccel.optimize(with_layers(llama(), Gptq).half())
    assert "dtype=torch.float32" in said(fast)[0] and not quantized_linears(fast)


@torch.inference_mode()
def test_bfloat16():
    model = with_layers(llama(), Gptq).bfloat16()
    fast = hfaccel.optimize(model)
    assert fast.model.layers[0].mlp.up_proj.weight.dtype is torch.bfloat16
    assert relative(fast(ids()).logits.float(), model(ids()).logits.float()) < 0.03


def test_quantization_is_for_what_the_checkpoint_has_left():
    model = with_layers(llama(), Gptq)
    fast = hfaccel.optimize(model, quantization="int8-weight-only")
    assert fast.lm_head.weight.kind is Kind.INT8_WEIGHT_ONLY and not isinstance(
        model.lm_head.weight, PackedWeight
    )
    assert {each.weight.kind for each in quantized_linears(fast)} == {Kind.INT4_WEIGHT_ONLY}
    with pytest.raises(ModelError, match="rounded already"):
        hfaccel.optimize(model, quantization="int8", inplace=True)
    assert not quantized_linears(model)


@torch.inference_mode()
def test_the_life_of_the_result(tmp_path):
    fast = hfaccel.optimize(with_layers(llama(), Gptq))
    wanted = fast(ids()).logits
    assert hfaccel.optimize(fast) is fast
    hfaccel.save(fast, tmp_path)
    loaded = hfaccel.load(tmp_path)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), loaded):
        assert again(ids()).logits.equal(wanted)
        assert {each.weight.kind for each in quantized_linears(again)} == {Kind.INT4_WEIGHT_ONLY}
    values = fast.model.layers[0].mlp.down_proj.weight.unpack()
    stock = hfaccel.restore(fast)
    assert type(stock.model.layers[0].mlp.down_proj.weight) is torch.nn.Parameter
    assert stock.model.layers[0].mlp.down_proj.weight.equal(values)
    assert relative(stock(ids()).logits, wanted) < 0.02


def test_the_quantizer_is_forgotten():
    """Or the result would be saved as what it is no more."""
    model = with_layers(llama(), Gptq)
    model.hf_quantizer, model.config.quantization_config = SimpleNamespace(), {"quant_method": "gptq"}
    fast = hfaccel.optimize(model)
    assert not hasattr(fast, "hf_quantizer") and not hasattr(fast.config, "quantization_config")
    assert model.hf_quantizer and model.config.quantization_config


def test_the_hook_that_expands_weights_is_taken_away():
    model = with_layers(llama(), compressed)
    model.ct_decompress_hook = model.register_forward_pre_hook(lambda *_: pytest.fail("expanded"))
    fast = hfaccel.optimize(model)
    fast(ids())
    assert model._forward_pre_hooks and type(model.lm_head.weight) is torch.nn.Parameter


def test_parts_of_different_kinds_are_not_fused():
    def make(linear):
        return Gptq(linear, bits=8 if linear.out_features == 64 else 4)

    fast = hfaccel.optimize(with_layers(llama(), make))
    reasons = [line.reason for line in hfaccel.report(fast).outcomes if line.subject == "LlamaDecoderLayer"]
    assert "differ in kind" in reasons[0] and len(quantized_linears(fast)) == 14
    with torch.inference_mode():
        assert fast(ids()).logits.isfinite().all()


def test_contents_of_quantized_tensors():
    model = with_layers(llama(), torchao)
    before = contents(model)
    assert contents(with_layers(llama(), torchao)) == before
    model.model.layers[1].mlp.up_proj.weight.qdata[3, 5] += 1
    assert contents(model) != before


def test_tokens():
    model = with_layers(llama(), Awq)
    fast = hfaccel.optimize(model)
    got = fast.generate(ids(5), max_new_tokens=8, do_sample=False, pad_token_id=0)
    wanted = model.generate(ids(5), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert got.eq(wanted).float().mean() > 0.7

"""GGUF files, which transformers expands to floats, are computed from their own numbers."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from conftest import needs_kernels
from gguf_files import write
from quantized import llama
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

import hfaccel
from hfaccel.engine.kernels import Kind
from hfaccel.engine.weights.linear import PackedModule
from hfaccel.engine.weights.packed import PackedWeight

SIZES = dict(hidden_size=256, intermediate_size=512)
FOUR, EIGHT, FINE = Kind.INT4_GROUPS_OF_32, Kind.INT8_GROUPS_OF_32, Kind.INT8_GROUPS_OF_16
KINDS = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q4_K"), FOUR),
    **dict.fromkeys(("Q5_0", "Q5_1", "Q5_K", "Q8_0"), EIGHT),
    **dict.fromkeys(("Q2_K", "Q6_K"), FINE),
}

pytestmark = needs_kernels


def qwen():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=300, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **SIZES
    )
    return Qwen2ForCausalLM(config).eval()


MODELS = {"llama": lambda: llama(**SIZES), "qwen2": qwen}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Models as from_pretrained gives them, and the values of the file, by family and type."""
    files = {}

    def loaded(family, types, **more):
        called = types if isinstance(types, str) else types.__name__
        if (family, called) not in files:
            path = tmp_path_factory.mktemp("gguf") / "model.gguf"
            choose = (lambda name: types) if isinstance(types, str) else types
            files[family, called] = path, write(path, MODELS[family](), choose)
        path, written = files[family, called]
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **more).eval()
        return model, written

    return loaded


def ids(count=24):
    return torch.randint(0, 300, (2, count), generator=torch.Generator().manual_seed(0))


def relative(got, wanted):
    return ((got.float() - wanted.float()).norm() / wanted.float().norm()).item()


def linears(model):
    return {name: each for name, each in model.named_modules() if isinstance(each, PackedModule)}


OTHERS = ("layers.0.self_attn.v_proj", "down_proj", "lm_head")


def medium(name):
    """As in files of the type Q4_K_M."""
    return "Q6_K" if name.endswith(OTHERS) else "Q4_K"


def partly(name):
    return "F16" if name.endswith(OTHERS) else "Q4_K"


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("type", ["Q4_0", "Q8_0"])
@torch.no_grad()
def test_results(load, family, type):
    model, _ = load(family, type)
    fast = hfaccel.optimize(model)
    assert relative(fast(ids()).logits, model(ids()).logits) < 0.02
    settings = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert fast.generate(ids(5), **settings).eq(model.generate(ids(5), **settings)).float().mean() > 0.7
    report = hfaccel.report(fast)
    assert any(
        line.applied and "layer" in line.subject and "layers" not in line.subject for line in report.outcomes
    )
    assert len(linears(fast)) == 15 and not linears(model) and not report.stock_calls


@pytest.mark.parametrize("type", KINDS)
def test_the_numbers_of_the_file(load, type):
    """With the steps and minima that the file has, as bfloat16. Llama's rows are permuted."""
    model, written = load("llama", type)
    for name, module in linears(hfaccel.optimize(model, inplace=True)).items():
        values, weight = written[name], module.weight
        assert weight.kind is KINDS[type]
        assert relative(weight.unpack(), values) < 2**-7
        levels = [len(group.unique()) for group in values[0].split(weight.kind.group)]
        assert [len(group.unique()) for group in weight.unpack()[0].split(weight.kind.group)] == levels


@pytest.mark.parametrize(("type", "most"), [("Q4_0", 8), ("Q8_0", 127)])
def test_weights_without_minima_stay_exact_multiples_of_their_scales(load, type, most):
    model, written = load("llama", type)
    for name, module in linears(hfaccel.optimize(model)).items():
        packed, numbers = numbers_of(module.weight.unpack(), most), numbers_of(written[name], most)
        assert packed.round().equal(numbers.round())
        torch.testing.assert_close(packed, numbers, rtol=0, atol=1e-4)


def numbers_of(values, most):
    """`most`: the largest of each group."""
    groups = values.unflatten(1, (-1, 32))
    return groups * most / groups.abs().amax(-1, keepdim=True)


def test_no_floats_stay(load):
    model, _ = load("llama", "Q4_0")
    gone = [
        weakref.ref(module.weight)
        for module in model.model.layers.modules()
        if hasattr(module, "in_features")
    ]
    fast = hfaccel.optimize(model, inplace=True)
    gc.collect()
    assert len(gone) == 14 and not [each for each in gone if each() is not None]
    for module in linears(fast).values():
        assert (
            module.weight.memory.numel() == -(-module.out_features // 32) * 32 * module.in_features * 5 // 8
        )


def test_types_side_by_side(load):
    """Parts with equal inputs get the kind that has the numbers of all."""
    model, written = load("llama", medium)
    fast = hfaccel.optimize(model)
    for name, module in linears(fast).items():
        together = "layers.0.self_attn" in name and not name.endswith("o_proj")
        assert module.weight.kind is (FINE if together or medium(name) == "Q6_K" else FOUR), name
        assert relative(module.weight.unpack(), written[name]) < 2**-7
    assert any(line.subject == "Llama layer" for line in hfaccel.report(fast).outcomes)
    assert relative(fast(ids()).logits, model(ids()).logits) < 0.02


def test_what_is_on_no_grid_stays_as_it_was_loaded(load):
    model, written = load("llama", partly)
    fast = hfaccel.optimize(model)
    kinds = {name: module.weight.kind for name, module in linears(fast).items()}
    for name, kind in kinds.items():
        together = name.startswith("model.layers.0.self_attn") and not name.endswith("o_proj")
        floats = together or partly(name) == "F16"
        assert kind is (Kind.FLOAT32 if floats else FOUR), name
        if floats:
            assert linears(fast)[name].weight.unpack().equal(written[name])
    assert relative(fast(ids()).logits, model(ids()).logits) < 0.02


def test_what_is_on_no_grid_is_rounded_if_that_is_asked_for(load):
    model, written = load("llama", partly)
    fast = hfaccel.optimize(model, quantization="int8-weight-only")
    kinds = {name: module.weight.kind for name, module in linears(fast).items()}
    wanted = {
        "model.layers.0.self_attn.q_proj": EIGHT,  # beside v_proj, which has the same inputs
        "model.layers.0.self_attn.v_proj": EIGHT,
        "model.layers.1.self_attn.v_proj": FOUR,
        "model.layers.0.mlp.down_proj": Kind.INT8_WEIGHT_ONLY,
        "lm_head": Kind.INT8_WEIGHT_ONLY,
    }
    assert {name: kinds[name] for name in wanted} == wanted
    assert all(
        relative(module.weight.unpack(), written[name]) < 0.01 for name, module in linears(fast).items()
    )
    lines = [line.reason for line in hfaccel.report(fast).outcomes if line.subject == "linear layer"]
    assert any("the checkpoint's own numbers" in line for line in lines)
    assert any("int8-weight-only, rounded" in line for line in lines)
    assert any(line.subject == "Llama layer" for line in hfaccel.report(fast).outcomes)


def test_fewer_bits_round(load):
    model, _ = load("llama", "Q8_0")
    fast = hfaccel.optimize(model, quantization="int4-weight-only")
    assert {module.weight.kind for module in linears(fast).values()} == {Kind.INT4_WEIGHT_ONLY}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_if_they_are_asked_for(load, dtype):
    model, _ = load("llama", "Q4_0")
    fast = hfaccel.optimize(model, dtype=dtype)
    assert {module.weight.kind for module in linears(fast).values()} == {
        Kind.FLOAT32 if dtype is torch.float32 else Kind.BFLOAT16
    }
    assert not linears(model)
    again = hfaccel.optimize(model)
    assert {module.weight.kind for module in linears(again).values()} == {FOUR}


@torch.no_grad()
def test_loaded_in_bfloat16(load):
    """Values of 4 bits are found in spite of their rounding; those of 8 bits are not."""
    model, written = load("llama", "Q4_1", dtype=torch.bfloat16)
    fast = hfaccel.optimize(model)
    weights = {name: module.weight for name, module in linears(fast).items()}
    assert {weight.kind for weight in weights.values()} == {FOUR}
    assert all(relative(weight.unpack(), written[name]) < 2**-7 for name, weight in weights.items())
    assert relative(fast(ids()).logits, model(ids()).logits) < 0.03
    model, _ = load("llama", "Q8_0", dtype=torch.bfloat16)
    assert {module.weight.kind for module in linears(hfaccel.optimize(model)).values()} == {Kind.BFLOAT16}


def test_a_model_that_no_quantizer_has_loaded(load):
    """Its weights may lie on a grid: only where groups are asked for, results change."""
    model, _ = load("llama", "Q4_0")
    for name in [name for name in vars(model) if "quant" in name]:
        delattr(model, name)
    fast = hfaccel.optimize(model, quantization="int8-weight-only")
    assert {module.weight.kind for module in linears(fast).values()} == {FOUR}
    assert {module.weight.kind for module in linears(hfaccel.optimize(model)).values()} == {Kind.FLOAT32}


@torch.no_grad()
def test_the_life_of_the_result(load, tmp_path):
    model, _ = load("llama", "Q4_1")
    fast = hfaccel.optimize(model)
    wanted = fast(ids()).logits
    assert hfaccel.optimize(fast) is fast
    hfaccel.save(fast, tmp_path / "packed")
    fast.save_pretrained(tmp_path / "values")
    loaded = hfaccel.load(tmp_path / "packed")
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), loaded):
        assert again(ids()).logits.equal(wanted)
        assert {module.weight.kind for module in linears(again).values()} == {FOUR}
    values = {name: module.weight.unpack() for name, module in linears(fast).items()}
    plan = hfaccel.engine.plan_of(fast)
    stock = hfaccel.restore(fast)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "values")
    for name, each in values.items():
        assert type(stock.get_submodule(name).weight) is torch.nn.Parameter
        assert stock.get_submodule(name).weight.equal(each) and saved.get_submodule(name).weight.equal(each)
    hfaccel.engine.apply_plan(saved, plan)
    assert all(type(module.weight) is PackedWeight for module in linears(saved).values())
    assert saved(ids()).logits.equal(wanted)


def test_the_quantizer_is_forgotten(load):
    model, _ = load("llama", "Q4_0")
    fast = hfaccel.optimize(model)
    assert not hasattr(fast.config, "quantization_config") and not hasattr(fast, "hf_quantizer")
    assert hasattr(model.config, "quantization_config")

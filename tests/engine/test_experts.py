"""Experts of a layer: packed parameters of three dimensions, and one call of the kernels for all of them."""

from __future__ import annotations

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import transformers
from conftest import needs_kernels
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

import hfaccel
from hfaccel.engine.experts import selection
from hfaccel.engine.experts.experts import PackedExperts
from hfaccel.engine.kernels import Kind
from hfaccel.engine.weights.stacked import STACKS, AlternateStack, GatedStack, StackedWeight
from hfaccel.errors import StockPathError

pytestmark = needs_kernels

SIZES = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
SIZES |= dict(vocab_size=100, intermediate_size=96, num_experts_per_tok=2, pad_token_id=0)
MODELS = {
    "Qwen3-MoE": (transformers.Qwen3MoeConfig, dict(num_experts=5, moe_intermediate_size=72)),
    "Mixtral": (transformers.MixtralConfig, dict(num_local_experts=5)),
    "GPT-OSS": (transformers.GptOssConfig, dict(num_local_experts=5)),
}
ROUNDS = {"int8": 0.03, "int8-weight-only": 0.02, "int4-weight-only": 0.18, "bfloat16": 0.01}
COUNT = 5


def model(name="Qwen3-MoE", **more):
    torch.manual_seed(0)
    config, settings = MODELS[name]
    made = transformers.AutoModelForCausalLM.from_config(config(**SIZES, **settings, **more)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3 if parameter.dim() == 3 else 0.1)
    return made


def experts(made):
    (found,) = (each for each in made.modules() if type(each).__name__.endswith("Experts"))
    return found


def given(rows=11, chosen=2, dtype=torch.float32, missing=3):
    """Tokens, which all leave out one expert."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(rows, COUNT, generator=generator)
    scores[:, missing] = -1
    weights, index = scores.topk(chosen)
    return torch.randn(rows, 64, generator=generator).to(dtype), index, weights.to(dtype)


def packed(name="Qwen3-MoE", **options):
    """The experts of an optimized model, and those of the same model as it was."""
    stock = model(name)
    return experts(hfaccel.optimize(copy.deepcopy(stock), **options)), experts(stock)


def relative(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


# What they compute


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("name", MODELS)
def test_they_equal_stock(name, rows):
    fast, stock = packed(name)
    assert isinstance(fast, PackedExperts)
    with torch.inference_mode():
        torch.testing.assert_close(fast(*given(rows)), stock(*given(rows)), rtol=1e-5, atol=1e-4)
    assert not fast.__dict__.get("_hfaccel_calls")


@pytest.mark.parametrize("kind", ROUNDS)
@pytest.mark.parametrize("name", MODELS)
def test_rounded_ones_are_near(name, kind):
    options = dict(dtype=torch.bfloat16) if kind == "bfloat16" else dict(quantization=kind)
    fast, stock = packed(name, **options)
    assert {weight.kind.label for weight in fast.hfaccel_weights()} == {kind}
    with torch.inference_mode():
        wanted = stock(*given(30))
        assert 0 < relative(fast(*given(30)), wanted) < ROUNDS[kind]
        half = fast(*given(30, dtype=torch.bfloat16))
        assert half.dtype is torch.bfloat16 and relative(half.float(), wanted) < ROUNDS[kind] + 0.01


def test_a_checkpoint_in_bfloat16():
    made = model().bfloat16()
    fast = experts(hfaccel.optimize(made))
    assert {weight.kind for weight in fast.hfaccel_weights()} == {Kind.BFLOAT16}
    rows, index, weights = given(dtype=torch.bfloat16)
    with torch.inference_mode():
        assert fast(rows, index, weights.float()).dtype is torch.bfloat16


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind <= Kind.INT4_WEIGHT_ONLY])
def test_an_expert_that_nobody_chose_is_not_read(kind):
    """Its bytes are no numbers any more, and no result notices."""
    fast, _ = packed(**(dict(quantization=kind.label) if kind >= Kind.INT8 else {}))
    with torch.inference_mode():
        before = fast(*given())
        for weight in fast.hfaccel_weights():
            layout = weight.packing
            weight.memory[3 * layout.step : 4 * layout.step] = 0xFF
        assert fast(*given()).equal(before)
        if kind is not Kind.INT8:
            assert fast(*given(missing=0)).isnan().any()


def test_arguments_by_their_names():
    fast, _ = packed("GPT-OSS")
    rows, index, weights = given()
    with torch.inference_mode():
        named = fast(rows, routing_weights=weights, router_indices=index)
        assert named.equal(fast(rows, index, weights))


def test_gradients():
    fast, stock = packed("GPT-OSS")
    found = []
    for each in (fast, stock):
        rows, index, weights = given()
        rows.requires_grad_(), weights.requires_grad_()
        each(rows, index, weights).square().sum().backward()
        found.append([rows.grad, weights.grad, *(parameter.grad for parameter in each.parameters())])
    assert len(found[0]) == 6
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)


# Where their own forward runs


def _other_function(fast):
    ALL_EXPERTS_FUNCTIONS["mine"] = lambda self, rows, index, weights: rows * 0
    fast.config._experts_implementation = "mine"


def _own_class(fast):
    type(fast).hfaccel_original._apply_gate = lambda self, both: both.chunk(2, -1)[0]


CHANGES = {
    "a submodule has a hook": lambda fast: fast.act_fn.register_forward_hook(lambda *given: None),
    "an attribute of the experts was changed": lambda fast: setattr(fast, "act_fn", nn.Tanh()),
    "the experts implementation is": _other_function,
    "Qwen3MoeExperts._apply_gate was replaced": _own_class,
    "a weight is not packed": lambda fast: setattr(
        fast, "down_proj", nn.Parameter(fast.down_proj.unpack().double().float())
    ),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_what_is_out_of_the_ordinary_runs_as_stock(reason):
    fast, stock = packed()
    own = type(stock)._apply_gate
    try:
        CHANGES[reason](fast)
        stock.act_fn, stock.config = fast.act_fn, fast.config
        with torch.inference_mode():
            torch.testing.assert_close(fast(*given()), stock(*given()), rtol=1e-5, atol=1e-5)
    finally:
        type(stock)._apply_gate = own
        ALL_EXPERTS_FUNCTIONS._global_mapping.pop("mine", None)
        ALL_EXPERTS_FUNCTIONS._local_mapping.pop("mine", None)
    assert [key.startswith(reason) for key in fast.__dict__["_hfaccel_calls"]] == [True]


def test_strict(monkeypatch):
    fast, _ = packed()
    fast.act_fn.register_forward_hook(lambda *given: None)
    monkeypatch.setenv("HFACCEL_STRICT", "1")
    with pytest.raises(StockPathError, match="a submodule has a hook"), torch.inference_mode():
        fast(*given())


def test_an_index_of_no_expert_is_transformers_affair():
    """Of a model that is divided among processes some are: they count nothing."""
    fast, stock = packed()
    rows, index, weights = given()
    index[2, 1] = COUNT
    stock.config._experts_implementation = fast.config._experts_implementation = "eager"
    with torch.inference_mode():
        torch.testing.assert_close(fast(rows, index, weights), stock(rows, index, weights))


def test_what_computes_otherwise_is_left_alone(monkeypatch):
    stock = model()
    monkeypatch.setattr(type(experts(stock)), "_apply_gate", lambda self, both: both.chunk(2, -1)[1])
    fast = hfaccel.optimize(stock)
    assert not isinstance(experts(fast), PackedExperts)
    reasons = [outcome.reason for outcome in hfaccel.report(fast).outcomes]
    assert "not packed: Qwen3MoeExperts computes something else than is known" in reasons


def test_the_trial_sees_a_limit():
    """The formulas differ where numbers are large."""
    _, stock = packed("GPT-OSS")
    assert selection.tried(stock) == ("limited and shifted", "")
    stock.alpha = 2.0
    assert selection.tried(stock) == ("limited and shifted", "")
    type(stock).limit = property(lambda self: 3.0, lambda self, value: None)
    try:
        assert selection.tried(stock)[0] == "limited and shifted"
    finally:
        del type(stock).limit


# The life of their weights


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("cls", STACKS)
def test_a_weight_of_any_form(cls, kind):
    torch.manual_seed(0)
    dense = nn.Parameter(torch.randn(3, 66, 70))
    weight = cls.pack(dense, None, kind)
    values = weight.unpack()
    assert weight.shape == dense.shape and values.shape == dense.shape
    assert relative(values, dense.detach()) <= (0 if kind is Kind.FLOAT32 else 0.11)
    for way in (copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each)), by_processes):
        again = way(weight)
        assert type(again) is cls and again.unpack().equal(values)
    with torch.no_grad():
        weight.mul_(2)
    assert relative(weight.unpack(), 2 * values) < (1e-6 if kind < Kind.INT8 else 0.02)
    assert weight[1].equal(weight.unpack()[1])


def by_processes(weight):
    return pickle.loads(ForkingPickler.dumps(weight))


@pytest.mark.parametrize("cls", [StackedWeight, GatedStack, AlternateStack])
@pytest.mark.parametrize("kind", Kind)
def test_another_layout(kind, cls):
    """A process whose kernels read other panels lays the weight out anew."""
    weight = cls.pack(nn.Parameter(torch.randn(3, 68, 70)), None, kind)
    there = 16 if weight.packing.panel == 32 else 32
    other = type(weight.packing)(
        kind, weight.packing.rows, 70, panel=there, count=3, halves=weight.packing.halves
    )
    memory = torch.zeros(other.nbytes, dtype=torch.uint8)
    cls.fill(other, memory, weight.unpack(), weight._factors())
    attached = cls.attach(memory, kind, (3, 68, 70), torch.float32, there, True)
    torch.testing.assert_close(attached.unpack(), weight.unpack(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("quantization", [None, "int4-weight-only"])
def test_a_model_and_its_copies(tmp_path, quantization):
    fast = hfaccel.optimize(model("GPT-OSS"), quantization=quantization)
    ids = torch.arange(1, 12)[None]
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    with pytest.warns(RuntimeWarning, match="not loaded from a checkpoint"):
        hfaccel.save(fast, tmp_path / "saved")
    others = [copy.deepcopy(fast), torch.load(file, weights_only=False), hfaccel.load(tmp_path / "saved")]
    with torch.inference_mode():
        wanted = fast(ids).logits
        for other in others:
            assert type(experts(other)) is type(experts(fast)) and other(ids).logits.equal(wanted)
            assert experts(other).hfaccel_weights()


def test_shared():
    fast = hfaccel.optimize(model("GPT-OSS"))
    ids = torch.arange(1, 12)[None]
    with torch.inference_mode():
        before = fast(ids).logits
        hfaccel.memory.share(fast)
        assert hfaccel.memory.shared(fast).outcome.applied
        received = pickle.loads(ForkingPickler.dumps(fast))
        assert fast(ids).logits.equal(before) and received(ids).logits.equal(before)
    assert len(experts(received).hfaccel_weights()) == 2


def test_restored():
    stock = model()
    values = {name: value.clone() for name, value in stock.state_dict().items()}
    parameter = experts(stock).gate_up_proj
    fast = hfaccel.optimize(stock)
    assert experts(fast).gate_up_proj is parameter and type(parameter) is GatedStack
    assert all(value.equal(values[name]) for name, value in fast.state_dict().items())
    hfaccel.restore(fast)
    assert type(parameter) is nn.Parameter and type(experts(fast)) is type(experts(model()))
    assert all(value.equal(values[name]) for name, value in fast.state_dict().items())
    assert not [name for name in vars(experts(fast)) if name.startswith("_hfaccel")]


def test_the_given_model_keeps_its_values():
    stock = model()
    before = experts(stock).down_proj.detach().clone()
    fast = hfaccel.optimize(stock, quantization="int4-weight-only")
    assert experts(stock).down_proj.equal(before) and type(experts(stock).down_proj) is nn.Parameter
    assert not experts(fast).down_proj.equal(before)


def test_training_and_back():
    fast = hfaccel.optimize(model(), inplace=True)
    fast.train()
    assert not experts(fast).hfaccel_weights()
    with torch.no_grad():
        experts(fast).down_proj.mul_(2)
    fast.eval()
    assert len(experts(fast).hfaccel_weights()) == 2
    stock = model()
    with torch.no_grad():
        experts(stock).down_proj.mul_(2)
        torch.testing.assert_close(experts(fast)(*given()), experts(stock)(*given()), rtol=1e-5, atol=1e-4)
    fast.bfloat16()
    assert {each.kind for each in experts(fast).hfaccel_weights()} == {Kind.BFLOAT16}


def test_packing_holds_no_second_copy(monkeypatch):
    """Each weight's values are given back before the next is packed."""
    made, alive = model(), []
    stock, pack = experts(made), GatedStack.pack.__func__

    def noted(cls, weight, *args, **kwargs):
        alive.append([each for each in stock.parameters() if type(each) is nn.Parameter and each.dim() == 3])
        return pack(cls, weight, *args, **kwargs)

    monkeypatch.setattr(StackedWeight, "pack", classmethod(noted))
    hfaccel.optimize(made, inplace=True)
    assert [len(each) for each in alive[-2:]] == [2, 1]

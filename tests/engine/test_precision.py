"""Precisions: what becomes of the given model, of checkpoints, copies, pickles, NaN and gradients."""

from __future__ import annotations

import copy
import io
import os
import pickle

import pytest
import torch
from conftest import at_once, make_bert, states
from encoders import cosines, random_vectors
from torch import nn

import hfaccel
from hfaccel.engine.kernels import Kind, kernels_problem, multiplies
from hfaccel.engine.layers.layer import FusedLayer
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.errors import ModelError, UsageError

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)

needs_bfloat16 = pytest.mark.skipif(not multiplies(Kind.BFLOAT16), reason="no instruction for bfloat16")
FLOAT32, BF16, INT8 = {}, {"dtype": torch.bfloat16}, {"quantization": "int8"}
ROUNDED = pytest.mark.parametrize("options", [BF16, INT8], ids=["bfloat16", "int8"])
EACH = pytest.mark.parametrize("options", [FLOAT32, BF16, INT8], ids=["float32", "bfloat16", "int8"])


@pytest.fixture
def model():
    return random_vectors(make_bert(hidden_size=64, intermediate_size=128))


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def kinds(model):
    return {
        module.weight.kind
        for module in model.modules()
        if isinstance(getattr(module, "weight", None), PackedWeight)
    }


@ROUNDED
def test_the_given_model_keeps_its_values_and_works(model, batch, options):
    before, expected = values(model), states(model, batch)
    types = [type(module) for module in model.modules()]
    fast = hfaccel.optimize(model, **options)
    states(fast, batch)
    assert_same(before, values(model))
    assert types == [type(module) for module in model.modules()]
    assert torch.equal(states(model, batch), expected)
    assert not any(isinstance(parameter, PackedWeight) for parameter in model.parameters())


def test_all_precisions_of_one_model_side_by_side(model, batch):
    """float32 shares its weights with the model that was given; the others have their own."""
    expected = states(copy.deepcopy(model), batch)
    fast = {
        kind: hfaccel.optimize(model, **options)
        for kind, options in zip((Kind.FLOAT32, Kind.BFLOAT16, Kind.INT8), (FLOAT32, BF16, INT8), strict=True)
    }
    for _ in range(2):
        for kind, each in fast.items():
            assert kinds(each) == {kind}
            near = cosines(states(each, batch)[0], expected[0]).min()
            assert near > {Kind.FLOAT32: 0.9999999, Kind.BFLOAT16: 0.999, Kind.INT8: 0.99}[kind]
            assert hfaccel.report(each).stock_calls == {}
    torch.testing.assert_close(states(fast[Kind.FLOAT32], batch), expected, rtol=0, atol=1e-5)


@ROUNDED
def test_from_float32_to_rounded_and_back(model, batch, options):
    before, expected = values(model), states(model, batch)
    first = hfaccel.optimize(model)
    rounded = hfaccel.optimize(model, **options)
    again = hfaccel.optimize(model)
    assert torch.equal(states(again, batch), states(first, batch))
    torch.testing.assert_close(states(first, batch), expected, rtol=0, atol=1e-5)
    assert cosines(states(rounded, batch)[0], expected[0]).min() > 0.99
    assert_same(before, values(hfaccel.restore(again)))
    assert_same(before, values(hfaccel.restore(model)))


def test_an_optimized_model_does_not_change_its_precision(model):
    fast = hfaccel.optimize(model, **INT8)
    assert hfaccel.optimize(fast, **INT8) is fast
    assert hfaccel.optimize(fast) is fast
    with pytest.raises(ModelError, match=r"optimized with int8 and cannot get torch.bfloat16"):
        hfaccel.optimize(fast, **BF16)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float16},
        {"dtype": "bfloat16"},
        {"quantization": "int4"},
        {"quantization": 8},
        {"unpad": 3},
    ],
)
def test_what_is_no_precision_is_refused(model, options):
    with pytest.raises(UsageError, match="must be"):
        hfaccel.optimize(model, **options)


@ROUNDED
def test_in_place(model, batch, options):
    expected = states(model, batch)
    fast = hfaccel.optimize(model, inplace=True, **options)
    assert fast is model and kinds(model) == {Kind.BFLOAT16 if options is BF16 else Kind.INT8}
    assert cosines(states(model, batch)[0], expected[0]).min() > 0.99
    hfaccel.restore(model)
    assert kinds(model) == set()
    assert cosines(states(model, batch)[0], expected[0]).min() > 0.99


# Checkpoints and copies


def rounded_weight(weight, options):
    if options is BF16:
        return weight.bfloat16().float()
    scale = weight.abs().amax(1, keepdim=True) / 127
    return torch.round(weight / scale) * scale


@ROUNDED
def test_state_dicts_hold_the_rounded_values(model, options):
    before, after = values(model), values(hfaccel.optimize(model, **options))
    name = "encoder.layer.0.output.dense.weight"  # its input comes from no norm: no factors
    torch.testing.assert_close(after[name], rounded_weight(before[name], options), rtol=1e-6, atol=1e-9)
    unrounded = [name for name in before if torch.equal(before[name], after[name])]
    assert {name for name in before if "LayerNorm" in name or "bias" in name or "embedding" in name} <= set(
        unrounded
    )


@EACH
def test_saved_loaded_pickled_and_copied(model, batch, options):
    fast = hfaccel.optimize(model, **options)
    expected = states(fast, batch)
    file = io.BytesIO()
    torch.save(fast.state_dict(), file)
    file.seek(0)
    loaded = make_bert(hidden_size=64, intermediate_size=128)
    loaded.load_state_dict(torch.load(file))
    assert cosines(states(loaded, batch)[0], expected[0]).min() > (0.999 if options is not INT8 else 0.99)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), hfaccel.optimize(loaded, **options)):
        torch.testing.assert_close(
            states(other, batch), expected, rtol=0, atol=1e-5 if options is not INT8 else 1e-3
        )
        assert sum(isinstance(module, FusedLayer) for module in other.modules()) == 2


@EACH
def test_a_copy_is_independent(model, batch, options):
    fast = hfaccel.optimize(model, **options)
    expected, other = states(fast, batch), copy.deepcopy(fast)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert torch.equal(states(fast, batch), expected)
    assert not torch.allclose(states(other, batch), expected)


@EACH
def test_values_loaded_later_are_used(model, batch, options):
    torch.manual_seed(3)
    wanted = random_vectors(make_bert(hidden_size=64, intermediate_size=128))
    with torch.no_grad():
        for parameter in wanted.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    fast = hfaccel.optimize(model, **options)
    states(fast, batch)
    fast.load_state_dict(wanted.state_dict())
    assert cosines(states(fast, batch)[0], states(wanted, batch)[0]).min() > 0.99
    assert hfaccel.report(fast).stock_calls == {}


@pytest.mark.parametrize(
    "part", ["output.LayerNorm", "attention.output.LayerNorm", "attention.self.query", "output.dense"]
)
@EACH
def test_a_replaced_vector_is_used(model, batch, part, options):
    fast = hfaccel.optimize(copy.deepcopy(model), **options)
    states(fast, batch)
    for each in (model, fast):
        torch.manual_seed(1)
        part_of = each.encoder.layer[0].get_submodule(part)
        part_of.bias = nn.Parameter(torch.randn_like(part_of.bias))
        if "LayerNorm" in part:
            part_of.weight = nn.Parameter(torch.randn_like(part_of.weight))
            part_of.eps = 0.5
    assert cosines(states(fast, batch)[0], states(model, batch)[0]).min() > 0.99


# Half-precision checkpoints


@EACH
def test_a_bfloat16_checkpoint_is_not_worse_than_stock(batch, options):
    model = random_vectors(make_bert(hidden_size=64, intermediate_size=128)).to(torch.bfloat16)
    exact = states(copy.deepcopy(model).float(), batch)
    stock = states(model, batch)
    before = values(model)
    fast = hfaccel.optimize(model, **options)
    got = states(fast, batch)
    assert got.dtype is torch.bfloat16
    assert_same(before, values(model))
    if options is not INT8:
        assert (got - exact).norm() <= 1.2 * (stock - exact).norm()
        assert kinds(fast) == {Kind.BFLOAT16}
    assert cosines(got[0], exact[0]).min() > 0.99
    assert hfaccel.report(fast).stock_calls == {}


# Values out of the ordinary


@pytest.mark.parametrize(
    "part", ["attention.self.query", "attention.self.value", "intermediate.dense", "output.dense"]
)
@EACH
def test_nan_in_a_weight_is_not_hidden(model, batch, part, options):
    with torch.no_grad():
        model.encoder.layer[0].get_submodule(part).weight[3, 5] = float("nan")
    assert states(model, batch)[0].isnan().all()
    assert states(hfaccel.optimize(model, **options), batch)[0].isnan().all()


@EACH
def test_nan_in_one_text_stays_there(model, batch, options):
    fast = hfaccel.optimize(model, **options)
    given = {"inputs_embeds": torch.randn(3, 17, 64), "attention_mask": batch["attention_mask"]}
    clean = states(fast, given)
    given["inputs_embeds"][1, 2, 7] = float("nan")
    got = states(fast, given)
    assert got[1, :9].isnan().all()
    torch.testing.assert_close(got[[0, 2]], clean[[0, 2]], rtol=0, atol=1e-5)


@EACH
@pytest.mark.parametrize(
    "ids", [torch.full((1, 3), 1000), torch.full((1, 3), -1), torch.zeros(0, 5), torch.zeros(2, 0)]
)
def test_bad_and_empty_input_raise_what_stock_raises(model, options, ids):
    fast, raised = hfaccel.optimize(model, **options), []
    for each in (make_bert(hidden_size=64, intermediate_size=128), fast):
        with torch.inference_mode(), pytest.raises((IndexError, RuntimeError)) as caught:
            each(input_ids=ids.long())
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]


@EACH
def test_empty_input_of_a_linear_layer(options):
    layer = nn.Sequential(nn.Linear(64, 96)).eval()
    fast = hfaccel.optimize(layer, **options)
    for shape in ((0, 64), (3, 0, 64)):
        assert fast(torch.empty(shape)).shape == (*shape[:-1], 96)


# Other ways to call


@EACH
def test_gradients_are_near_those_of_stock(model, batch, options):
    stock = copy.deepcopy(model)
    fast = hfaccel.optimize(model, **options)
    for each in (stock, fast):
        each(**batch)[0].square().mean().backward()
    wanted = {name: parameter.grad for name, parameter in stock.named_parameters()}
    for name, parameter in fast.named_parameters():
        if wanted[name] is not None and "key.bias" not in name:  # whose gradient is zero
            assert cosines(parameter.grad.flatten(), wanted[name].flatten()) > (0.9 if options else 0.9999), (
                name
            )


@EACH
def test_autocast_gives_what_stock_gives_and_keeps_what_was_rounded_fused(model, batch, options):
    stock, fast = copy.deepcopy(model), hfaccel.optimize(model, **options)
    for _ in range(2):
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            got, expected = fast(**batch), stock(**batch)
        for a, b in zip(got.values(), expected.values(), strict=True):
            assert a.dtype is b.dtype
        real = batch["attention_mask"].bool()
        assert cosines(got[0][real].float(), expected[0][real].float()).min() > 0.99
    assert hfaccel.report(fast).stock_calls == {}


def cast(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return states(model, batch)


@needs_bfloat16
def test_under_autocast_float32_is_multiplied_in_bfloat16_and_nothing_else_is(model, batch):
    """As a model in bfloat16 has it. Calls outside of autocast keep every bit."""
    rounded = hfaccel.optimize(copy.deepcopy(model), dtype=torch.bfloat16)
    fast = hfaccel.optimize(model)
    exact = states(fast, batch)
    for each in (fast, rounded):
        cast(each, batch)  # stock's own, which tells of which type its results are
    assert torch.equal(cast(fast, batch), cast(rounded, batch))
    assert torch.equal(states(fast, batch), exact)


@pytest.mark.parametrize("change", ["in place", "trained", "shared", "pickled", "restored"])
def test_under_autocast_a_changed_weight_is_rounded_anew(model, batch, change):
    stock, fast = copy.deepcopy(model), hfaccel.optimize(model)
    for _ in range(3):
        cast(fast, batch)
    for each in (fast, stock):
        each.train(change == "trained")
        with torch.no_grad():
            for parameter in each.parameters():
                parameter.copy_(parameter.flip(0) * (8 if parameter.dim() == 2 else 1))
        each.eval()
    after = {
        "shared": lambda model: model.share_memory(),
        "pickled": lambda model: pickle.loads(pickle.dumps(model)),
        "restored": hfaccel.restore,
    }
    fast = after.get(change, lambda model: model)(fast)
    real = batch["attention_mask"].bool()
    for _ in range(3):
        assert cosines(cast(fast, batch)[real], cast(stock, batch)[real]).min() > 0.99
    restored = hfaccel.restore(fast)
    assert not any(name.startswith("_hfaccel") for part in restored.modules() for name in vars(part))


def test_without_instructions_for_bfloat16_autocast_multiplies_float32(model, batch, monkeypatch):
    stock, fast = copy.deepcopy(model), hfaccel.optimize(model)
    exact = states(fast, batch)
    monkeypatch.setattr("hfaccel.engine.weights.autocast.multiplies", lambda kind: kind is Kind.FLOAT32)
    for _ in range(2):
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            got, expected = fast(**batch), stock(**batch)
    assert [value.dtype for value in got.values()] == [value.dtype for value in expected.values()]
    torch.testing.assert_close(got[0], exact, rtol=1e-4, atol=1e-4)
    assert hfaccel.report(fast).stock_calls == {}


@EACH
def test_hidden_states_are_near(model, batch, options):
    fast = hfaccel.optimize(model, **options)
    with torch.inference_mode():
        expected, got = (each(**batch, output_hidden_states=True).hidden_states for each in (model, fast))
    real = batch["attention_mask"].bool()
    assert len(got) == len(expected) == 3
    assert all(cosines(a[real], b[real]).min() > 0.99 for a, b in zip(got, expected, strict=True))
    assert hfaccel.report(fast).stock_calls == {}


@EACH
def test_attentions_are_near(model, batch, options):
    model.set_attn_implementation("eager")
    fast = hfaccel.optimize(model, **options)
    with torch.inference_mode():
        expected, got = (each(**batch, output_attentions=True).attentions for each in (model, fast))
    assert len(got) == len(expected) == 2
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2)


@EACH
def test_hooks_for_all_modules_see_all(model, batch, options):
    stock, fast, seen = copy.deepcopy(model), hfaccel.optimize(model, **options), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        states(stock, batch)
        expected = len(seen)
        states(fast, batch)
    finally:
        handle.remove()
    assert len(seen) == 2 * expected


@EACH
def test_threads_at_once(model, batch, options):
    fast = hfaccel.optimize(model, **options)
    inputs = [
        batch,
        {"input_ids": batch["input_ids"][:2, :5]},
        {name: part.flip(1) for name, part in batch.items()},
    ]
    expected = [states(fast, given) for given in inputs]

    def work(number):
        turns = [(number + turn) % 3 for turn in range(6)]
        return all(torch.equal(states(fast, inputs[given]), expected[given]) for given in turns)

    assert all(at_once(3, work))


@EACH
def test_a_forked_child_computes_the_same(model, batch, options):
    fast = hfaccel.optimize(model, **options)
    expected = states(fast, batch)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if torch.allclose(states(fast, batch), expected, atol=1e-5) else 1)
    assert os.waitpid(child, 0)[1] == 0


@EACH
def test_a_wrapped_linear_layer_is_called(model, batch, options):
    """As peft wraps one: the base layer and something added, under the same name."""

    class Adapter(nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer
            torch.manual_seed(0)
            self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)

        def forward(self, x):
            return self.base_layer(x) + self.up(self.down(x))

    def wrapped(bert):
        attention = bert.encoder.layer[0].attention.self
        attention.query = Adapter(attention.query)
        return bert.eval()

    before, after = (
        hfaccel.optimize(wrapped(copy.deepcopy(model)), **options),
        wrapped(hfaccel.optimize(model, **options)),
    )
    expected = states(wrapped(make_like(model)), batch)
    for fast in (before, after):
        assert cosines(states(fast, batch)[0], expected[0]).min() > 0.99


def test_a_part_of_another_precision_runs_stock(model, batch):
    fast, other = hfaccel.optimize(model, **INT8), hfaccel.optimize(model, **BF16)
    attention = fast.encoder.layer[0].attention.self
    attention.query = other.encoder.layer[0].attention.self.query
    assert cosines(states(fast, batch)[0], states(model, batch)[0]).min() > 0.99
    assert "its parts do not fit each other" in str(hfaccel.report(fast).stock_calls)


def make_like(model):
    """A stock model with the values of this one, which may be optimized."""
    stock = make_bert(hidden_size=64, intermediate_size=128)
    stock.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return stock


@EACH
def test_merged_adapters_are_used(model, batch, options):
    """merge_and_unload adds to the weight in place."""
    fast = hfaccel.optimize(copy.deepcopy(model), **options)
    states(fast, batch)
    torch.manual_seed(2)
    delta = torch.randn(64, 4) @ torch.randn(4, 64) / 50
    for each in (model, fast):
        each.encoder.layer[1].attention.self.value.weight.data += delta
    assert cosines(states(fast, batch)[0], states(model, batch)[0]).min() > 0.99
    assert hfaccel.report(fast).stock_calls == {}


def test_compiled(model, batch):
    fast = hfaccel.optimize(model, **INT8)
    expected = states(fast, batch)
    try:
        compiled = torch.compile(fast, backend="eager")
        got = states(compiled, batch)
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)

"""What int8 would lose, and that layers which would lose too much stay in more bits."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import make_bert, states
from encoders import cosines, inputs, make, random_vectors, real, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hfaccel
from hfaccel.engine.calibration import quantization
from hfaccel.engine.calibration.quantization import BOUND, brief, quantization_error, too_lossy
from hfaccel.engine.kernels import Kind, kernels_problem, multiplies
from hfaccel.engine.weights.packed import PackedWeight

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

INT8 = {"quantization": "int8"}
HIGHER = Kind.BFLOAT16 if multiplies(Kind.BFLOAT16) else Kind.FLOAT32  # where int8 would lose too much


def kinds(model):
    return {
        path: module.weight.kind
        for path, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), PackedWeight)
    }


def kept(model):
    return {path for path, kind in kinds(model).items() if kind is not Kind.INT8}


def lines(model):
    return [line for line in hfaccel.report(model).outcomes if line.subject == "linear layer"]


# Planted outliers: the model computes what it did, and a few channels between two of its linear layers are a
# thousand times larger than the others, as in large encoders


def widen(first, second, times=1000, channels=3):
    with torch.no_grad():
        first.weight[:channels] *= times
        first.bias[:channels] *= times
        second.weight[:, :channels] /= times


def planted(where):
    model = random_vectors(make_bert(hidden_act="relu"))
    layer = model.encoder.layer[1]
    if where == "output.dense":
        widen(layer.intermediate.dense, layer.output.dense)
    else:
        widen(layer.attention.self.value, layer.attention.output.dense)
    return model


@pytest.mark.parametrize("where", ["output.dense", "attention.output.dense"])
def test_a_layer_that_would_lose_too_much_stays_in_more_bits(where, batch, monkeypatch):
    model = planted(where)
    expected = states(model, batch)
    fast = hfaccel.optimize(model, **INT8)
    assert kept(fast) == {f"encoder.layer.1.{where}"}
    assert cosines(states(fast, batch)[0], expected[0]).min() > 0.9995
    assert not hfaccel.report(fast).stock_calls

    (line,) = (line for line in lines(fast) if "kept" in line.reason)
    assert line.applied and line.count == 1
    assert (
        line.reason.startswith(f"kept in {HIGHER.label}: int8 would lose up to 1")
        and "6% is allowed" in line.reason
    )
    assert line.reason.endswith(f": encoder.layer.1.{where}")

    monkeypatch.setattr(quantization, "too_lossy", lambda *_: set())
    naive = hfaccel.optimize(model, **INT8)
    assert not kept(naive) and cosines(states(naive, batch)[0], expected[0]).min() < 0.998


def test_real_encoders_stay_in_int8(minilm_path):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(minilm_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    sample = tokenizer(["one text", "and another one, somewhat longer"], padding=True, return_tensors="pt")
    for options in ({}, {"sample": dict(sample), "backend": "torch"}):
        fast = hfaccel.optimize(model, **INT8, **options)
        assert set(kinds(fast).values()) == {Kind.INT8} and len(kinds(fast)) == 37
        (line,) = lines(fast)
        assert line.reason.startswith("packed in int8, which loses 1.") and line.count == 37


@pytest.mark.parametrize("chosen", [1, 2, 4, 8, 6, 11])
@pytest.mark.parametrize("name", ["BERT", "NomicBERT", "ModernBERT"])
def test_any_parts_of_a_fused_layer_may_be_higher(name, chosen, monkeypatch):
    def some(_, groups):
        return {weight for number, group in enumerate(parts) if chosen >> number & 1 for weight in group}

    model, sample = make(name), inputs(name)
    parts = parts_of(model)
    monkeypatch.setattr(quantization, "too_lossy", some)
    fast = hfaccel.optimize(model, **INT8)
    assert len(kept(fast)) == len(some(None, None))
    got, expected = (real(run(each, sample), sample) for each in (fast, model))
    assert cosines(got, expected).min() > 0.998
    assert not hfaccel.report(fast).stock_calls


def parts_of(model):
    """The weights of all layers that multiply attention's input, its result, the feed-forward's, its
    wide rows."""
    from hfaccel.engine.layers.trial import match

    parts = [set(), set(), set(), set()]
    for layer in model.modules():
        family, _ = match(layer) or (None, "")
        if family is not None:
            paths = (family.attention_inputs, (family.attention_output,), family.wide_inputs, (family.down,))
            for part, names in zip(parts, paths, strict=True):
                part.update(layer.get_submodule(name).weight for name in names)
    return parts


def test_query_key_and_value_are_of_one_kind(batch):
    model = random_vectors(make_bert())
    norm = model.encoder.layer[0].output.LayerNorm
    key = model.encoder.layer[1].attention.self.key
    with (
        torch.no_grad()
    ):  # a constant that takes all the steps, in a channel that the key alone does not need
        norm.bias[0] = 3000.0
        key.weight[:, 0] = 0
    fast = hfaccel.optimize(model, **INT8)
    own = {f"encoder.layer.1.attention.self.{name}" for name in ("query", "key", "value")}
    assert own <= kept(fast)
    states(fast, batch)
    assert not hfaccel.report(fast).stock_calls


# Samples


class Scaled(nn.Module):
    """Channels of very different size that no norm tells of."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)
        with torch.no_grad():
            self.linear.weight[:, :2] /= 1000

    def forward(self, rows, attention_mask=None):
        return self.linear(rows)


@pytest.fixture
def outliers():
    rows = torch.randn(4, 20, 64, generator=torch.Generator().manual_seed(0))
    rows[..., :2] *= 1000
    return rows


def test_a_sample_shows_what_the_weights_do_not(outliers):
    torch.manual_seed(0)
    model = Scaled().eval()
    assert not kept(hfaccel.optimize(model, **INT8))
    fast = hfaccel.optimize(model, **INT8, backend="torch", sample={"rows": outliers})
    assert kept(fast) == {"linear"}
    with torch.inference_mode():
        assert cosines(fast(outliers), model(outliers)).min() > 0.9995


def test_padding_of_a_sample_does_not_count(outliers):
    torch.manual_seed(0)
    mask = torch.ones(4, 20, dtype=torch.long)
    mask[1:] = 0
    outliers[0, :, :2] /= 1000
    sample = {"rows": outliers, "attention_mask": mask}
    assert not kept(hfaccel.optimize(Scaled().eval(), **INT8, backend="torch", sample=sample))


def test_a_sample_that_the_model_does_not_take_raises_what_the_model_raises(bert):
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        hfaccel.optimize(bert, **INT8, backend="torch", sample={"pixels": torch.zeros(1)})


# What stays as it was


def test_trying_leaves_no_trace(batch):
    model = planted("output.dense")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    random, expected = torch.get_rng_state(), states(model, batch)
    hfaccel.optimize(model, **INT8, backend="torch", sample=batch)
    assert torch.equal(torch.get_rng_state(), random)
    assert hooks == [dict(module._forward_hooks) for module in model.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(states(model, batch), expected)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_the_same_kinds(way, batch):
    fast = hfaccel.optimize(planted("output.dense"), **INT8)
    other = way(fast)
    assert kinds(other) == kinds(fast) and len(kept(other)) == 1
    torch.testing.assert_close(states(other, batch), states(fast, batch), rtol=0, atol=1e-3)


def test_a_saved_model_comes_back_with_its_kinds(tmp_path, batch):
    model = planted("output.dense")
    model.save_pretrained(tmp_path / "checkpoint")
    fast = hfaccel.optimize(type(model).from_pretrained(tmp_path / "checkpoint").eval(), **INT8)
    hfaccel.save(fast, tmp_path / "saved")
    loaded = hfaccel.load(tmp_path / "saved")
    assert kinds(loaded) == kinds(fast) and len(kept(loaded)) == 1
    assert torch.equal(states(loaded, batch), states(fast, batch))


def test_of_a_bfloat16_checkpoint(batch):
    exact = planted("output.dense")
    expected = states(exact, batch)
    fast = hfaccel.optimize(exact.to(torch.bfloat16), **INT8)
    assert len(kept(fast)) == 1
    assert cosines(states(fast, batch)[0].float(), expected[0]).min() > 0.999


def test_without_bfloat16_it_stays_in_float32(batch, monkeypatch):
    monkeypatch.setattr(quantization, "multiplies", lambda kind: kind is not Kind.BFLOAT16)
    model = planted("output.dense")
    fast = hfaccel.optimize(model, **INT8)
    assert kinds(fast)["encoder.layer.1.output.dense"] is Kind.FLOAT32
    assert cosines(states(fast, batch)[0], states(model, batch)[0]).min() > 0.9995
    assert hfaccel.report(fast).stock_calls == {}


def test_weights_of_zeros_and_nan_are_no_loss():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    with torch.no_grad():
        model[0].weight.zero_()
        model[1].weight[0, 0] = float("nan")
    fast = hfaccel.optimize(model, **INT8)
    assert not kept(fast)
    assert "int8" in lines(fast)[0].reason and "nan" not in lines(fast)[0].reason


# The measure, and the decision


def noisy(rows=200, columns=64, noise=0.1):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, columns, generator=generator)
    return values, values + noise * torch.randn(rows, columns, generator=generator)


def test_the_measure_is_a_share():
    expected, got = noisy()
    assert quantization_error(expected, expected) == 0
    assert quantization_error(expected, got) == pytest.approx(0.1, rel=0.1)
    assert quantization_error(expected, 0 * got) == pytest.approx(1, rel=0.1)
    assert quantization_error(expected[:1], got[:1]) == pytest.approx(0.1, rel=0.3)


@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
@settings(max_examples=20)
def test_neither_size_nor_constants_nor_single_columns_hide_a_loss(size, constant):
    expected, got = noisy()
    columns = torch.ones(64)
    columns[:3] = 100.0
    usual = quantization_error(expected, got)
    made = [(each * size * columns + constant * size).double() for each in (expected, got)]
    assert quantization_error(*made) == pytest.approx(usual, rel=0.01)


def test_a_few_rows_do_not_hide_a_loss():
    expected, got = noisy()
    usual = quantization_error(expected, got)
    for each in (expected, got):
        each[:3] *= 1000
    assert quantization_error(expected, got) == pytest.approx(usual, rel=0.3)


weights = st.integers(0, 12)


@given(
    st.dictionaries(weights, st.floats(0, 0.2) | st.just(float("nan"))),
    st.lists(st.lists(weights, min_size=1, max_size=4), max_size=6),
)
def test_groups_are_of_one_kind_and_no_more_than_needed_is_higher(measured, groups):
    found = too_lossy(measured, groups)
    assert {weight for weight, error in measured.items() if error > BOUND} <= found
    for group in groups:
        assert found.isdisjoint(group) or found.issuperset(group)
    for weight in found:  # each is lossy, or in one group with another of them
        others = {other for group in groups if weight in group for other in group} - {weight}
        assert measured.get(weight, 0) > BOUND or others & found


def test_paths_are_brief():
    paths = ["encoder.layer.0.a", "encoder.layer.10.a", "encoder.layer.3.b.2", "pooler"]
    assert brief(paths) == ["encoder.layer.{0,10}.a", "encoder.layer.3.b.2", "pooler"]

"""Measured gains: they are reported, what is slower is not used, and measuring leaves no trace."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import make_bert, states
from encoders import SETTINGS, inputs, make, real, run
from torch import nn

import hfaccel
from hfaccel.engine import gains
from hfaccel.engine.gains import ROUNDS, Times, combined, of_layers, of_linears
from hfaccel.engine.kernels import Kind, kernels_problem
from hfaccel.engine.layer import FusedLayer
from hfaccel.engine.packed import PackedWeight
from hfaccel.outcome import Outcome, merge

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)

pytestmark = pytest.mark.usefixtures("one_thread")

SLOWER, FASTER = Times(1.0, 2.0), Times(3.0, 1.0)


@pytest.fixture(autouse=True)
def enough_time(monkeypatch):
    """Other programs may take all that there is."""
    monkeypatch.setattr(gains, "BUDGET", 1e6)


def lines(model, subject):
    return [line for line in hfaccel.report(model).outcomes if line.subject == subject]


def fused(model):
    return [module for module in model.modules() if isinstance(module, FusedLayer)]


@pytest.fixture
def wide():
    """Linear layers that are large enough to be measured, of two kinds."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512), nn.Linear(512, 640)).eval()


def let(monkeypatch, times):
    """What is measured, by the shape of the weight or the class of the layer."""
    monkeypatch.setattr(gains, "_time_linear", lambda module, kind, until: times(module))
    monkeypatch.setattr(gains, "_time_layer", lambda layer, until: times(layer))


# Reported


def test_the_report_has_a_column(bert):
    report = hfaccel.report(hfaccel.optimize(bert))
    (line,) = (line for line in report.outcomes if line.subject == "BERT layer")
    assert line.gain > 0 and line.count == 2
    assert "times faster" in str(report) and f"{line.gain:.1f}" in str(report)
    written = json.loads(json.dumps(report.to_dict(), default=str))["outcomes"]
    assert [one["gain"] for one in written] == [one.gain for one in report.outcomes]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_family_is_measured(name):
    model = make(name)
    hfaccel.optimize(model, inplace=True)
    layers = fused(model)
    for layer, times in ((layer, of_layers([layer])) for layer in layers):
        assert times[id(layer)].stock > 0 and times[id(layer)].fast > 0


def test_gains_of_linear_layers(wide, monkeypatch):
    let(monkeypatch, lambda module: Times(2.0 if module.out_features == 640 else 5.0, 1.0))
    (line,) = lines(hfaccel.optimize(wide), "linear layer")
    assert line.gain == 4.0 and line.count == 3  # 5, 5 and 2 seconds instead of 1, 1 and 1


@pytest.mark.parametrize("kind", [kind for kind in Kind if not kernels_problem(kind)])
def test_each_kind_is_measured(wide, kind):
    times = of_linears(wide, lambda weight: kind)
    assert times.keys() == {id(module) for module in wide}
    assert times[id(wide[0])] is times[id(wide[1])] is not times[id(wide[2])]


def test_gains_travel_with_a_saved_model(bert, tmp_path):
    fast = hfaccel.optimize(bert)
    with pytest.warns(RuntimeWarning, match="not loaded from a checkpoint"):
        hfaccel.save(fast, tmp_path)
    (line,) = lines(hfaccel.load(tmp_path), "BERT layer")
    assert line == lines(fast, "BERT layer")[0]


# Never worse


def test_a_slower_layer_is_left_as_it_is(bert, batch, monkeypatch):
    expected = states(copy.deepcopy(bert), batch)
    let(monkeypatch, lambda module: SLOWER)
    fast = hfaccel.optimize(bert)
    assert not fused(fast)
    assert [type(layer) for layer in fast.encoder.layer] == [type(layer) for layer in bert.encoder.layer]
    (line,) = lines(fast, "BERT layer")
    assert not line.applied and line.reason == "not fused: 0.50 times as fast as its own forward here"
    torch.testing.assert_close(states(fast, batch), expected, rtol=0, atol=1e-5)
    assert not fused(hfaccel.restore(fast))


def test_only_the_slower_kind_of_layer(monkeypatch):
    """The layers of ModernBERT differ in how far a token sees."""
    first = {}
    let(monkeypatch, lambda layer: first.setdefault("seen", SLOWER) if not first else FASTER)
    model, given = make("ModernBERT"), inputs("ModernBERT")
    fast = hfaccel.optimize(model)
    assert len(fused(fast)) == 1
    assert {(line.applied, line.gain) for line in lines(fast, "ModernBERT layer")} == {
        (False, 0.5),
        (True, 3.0),
    }
    torch.testing.assert_close(
        real(run(fast, given), given), real(run(model, given), given), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"quantization": "int8"}])
def test_a_slower_linear_layer_is_left_as_it_is(wide, monkeypatch, options):
    let(monkeypatch, lambda module: SLOWER if module.out_features == 640 else FASTER)
    fast = hfaccel.optimize(wide, **options)
    assert [isinstance(module.weight, PackedWeight) for module in fast] == [True, True, False]
    assert type(fast[2]) is nn.Linear and fast[2].weight is wide[2].weight
    left = next(line for line in lines(fast, "linear layer") if not line.applied)
    assert left.reason == "not packed: 0.50 times as fast as torch's own here"


def seconds(monkeypatch, stock, fast):
    """Times of calls, one after the other: warm-up aside, stock and fast in turn."""
    turns = iter([each for pair in zip(stock, fast, strict=True) for each in pair])
    taken = []
    monkeypatch.setattr(gains, "_seconds", lambda call: taken.append(call) or next(turns))
    return taken


def test_nothing_is_called_slower_that_was_only_disturbed(monkeypatch):
    most = ROUNDS[-1]
    calls = seconds(monkeypatch, [1.0] * most, [9.0] * (most - 1) + [0.5])
    assert gains._time(lambda: 0, lambda: 1, 0.0).gain == 2.0 and len(calls) == 2 * most
    calls = seconds(monkeypatch, [1.0] * most, [9.0] * most)
    assert gains._time(lambda: 0, lambda: 1, 0.0).is_slower and len(calls) == 2 * most


def test_what_is_faster_is_called_little(monkeypatch):
    calls = seconds(monkeypatch, [1.0] * 5, [0.5] * 5)
    assert gains._time(lambda: 0, lambda: 1, 0.0).gain == 2.0 and len(calls) == 2 * ROUNDS[0]
    calls = seconds(monkeypatch, [1.0] * 5, [0.5] * 5)
    assert gains._time(lambda: 0, lambda: 1, float("inf")).gain == 2.0 and len(calls) == 2 * ROUNDS[1]


# What is not measured


def test_without_time_nothing_is_measured_and_all_is_applied(bert, monkeypatch):
    monkeypatch.setattr(gains, "BUDGET", 0.0)
    fast = hfaccel.optimize(bert)
    assert len(fused(fast)) == 2 and all(line.gain is None for line in hfaccel.report(fast).outcomes)


def test_the_largest_and_the_smallest_are_not_measured(wide, monkeypatch):
    assert of_linears([nn.Linear(64, 64)], lambda weight: Kind.FLOAT32) == {}
    monkeypatch.setattr(gains, "LARGEST", 1000)
    assert of_linears(wide, lambda weight: Kind.FLOAT32) == {}
    fast = hfaccel.optimize(make_bert())
    assert len(fused(fast)) == 2 and lines(fast, "BERT layer")[0].gain is None


# No trace


def test_measuring_leaves_no_trace(bert, batch):
    called = []
    bert.encoder.layer[0].register_forward_hook(lambda *_: called.append(1))
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    fast = hfaccel.optimize(bert)
    assert not called and len(fused(fast)) == 2
    assert torch.equal(torch.get_rng_state(), random) and torch.get_num_threads() == threads
    assert hfaccel.report(fast).stock_calls == {}
    states(fast, batch)
    assert called == [1]


# Data


def test_gains_combine_by_time():
    assert combined([Times(9.0, 1.0), Times(1.0, 1.0)]) == 5.0
    assert combined([]) is None
    assert not Times(1.0, 1.05).is_slower and Times(1.0, 1.2).is_slower and not Times().is_slower


def test_lines_of_one_gain_are_merged():
    given = [Outcome("a", True, "b", gain=2.0), Outcome("a", True, "b"), Outcome("a", True, "b", 2, 2.0)]
    assert merge(given) == (Outcome("a", True, "b", 3, 2.0), Outcome("a", True, "b"))

"""Measured speedups: they are reported, what is slower is not used, and measuring leaves no trace."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import states
from encoders import SETTINGS, inputs, make, real, run
from torch import nn

import hfaccel
from hfaccel.engine.calibration import speedups
from hfaccel.engine.calibration.speedups import BEHIND, LEAD, PAIRS, Times, combined, of_layers, of_linears
from hfaccel.engine.calls.regimes import REGIMES, regime_of
from hfaccel.engine.kernels import Kind, kernels_problem
from hfaccel.engine.layers.layer import FusedLayer
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.outcome import Outcome, merge

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.measured]

SLOWER, FASTER = Times(1.0, 2.0), Times(3.0, 1.0)


@pytest.fixture(autouse=True)
def enough_time(monkeypatch):
    """Other programs may take all that there is."""
    monkeypatch.setattr(speedups, "BUDGET", 1e6)


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
    monkeypatch.setattr(speedups, "_time_linear", lambda module, kind, count: times(module))
    monkeypatch.setattr(speedups, "_time_layer", lambda layer, regime, own_forward=False: times(layer))


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
    for layer in layers:
        found = of_layers([layer])[layer]
        assert REGIMES[:2] == tuple(found)[:2]
        assert all(times.stock > 0 and times.fast > 0 for times in found.values())


def test_gains_of_linear_layers(wide, monkeypatch):
    let(monkeypatch, lambda module: Times(2.0 if module.out_features == 640 else 5.0, 1.0))
    (line,) = lines(hfaccel.optimize(wide), "linear layer")
    assert line.gain == 4.0 and line.count == 3  # 5, 5 and 2 seconds instead of 1, 1 and 1


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_is_measured(wide, kind):
    times = of_linears(dict.fromkeys(wide, kind))
    if kind.is_grouped:  # for the bytes that it saves
        assert times == {}
        return
    assert times.keys() == {*wide}
    assert times[wide[0]] is times[wide[1]] is not times[wide[2]]


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
    assert (
        not line.applied
        and line.reason == "not fused: 0.50 times as fast as its own forward here with few rows"
    )
    torch.testing.assert_close(states(fast, batch), expected, rtol=0, atol=1e-5)
    assert not fused(hfaccel.restore(fast))


def test_only_the_slower_kind_of_layer(monkeypatch):
    """The layers of ModernBERT differ in how far a token sees."""
    first = {}
    let(monkeypatch, lambda layer: SLOWER if first.setdefault("seen", layer) is layer else FASTER)
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
    assert left.reason == "not packed: 0.50 times as fast as torch's own here with few rows"


def seconds(monkeypatch, stock, fast):
    """Times of calls, one after the other: warm-up aside, stock and fast in turn."""
    turns = iter([each for pair in zip(stock, fast, strict=True) for each in pair])
    taken = []
    monkeypatch.setattr(speedups, "_seconds", lambda call: taken.append(call) or next(turns))
    return taken


def test_nothing_is_called_slower_that_was_only_disturbed(monkeypatch):
    """What wins and loses in turn is judged by its best time."""
    turn = [9.0, 0.5] * PAIRS
    calls = seconds(monkeypatch, [1.0] * PAIRS, turn[:PAIRS])
    assert speedups.time_pairs(lambda: 0, lambda: 1).gain == 2.0 and len(calls) == 2 * PAIRS
    calls = seconds(monkeypatch, [1.0] * PAIRS, [2.0] * PAIRS)
    assert speedups.time_pairs(lambda: 0, lambda: 1).is_slower and len(calls) == 2 * BEHIND


def test_what_is_faster_is_called_little(monkeypatch):
    calls = seconds(monkeypatch, [1.0] * 5, [0.5] * 5)
    assert speedups.time_pairs(lambda: 0, lambda: 1).gain == 2.0 and len(calls) == 2 * LEAD
    one_bad_pair = [9.0, *[0.5] * 10]
    calls = seconds(monkeypatch, [1.0] * 11, one_bad_pair)
    assert not speedups.time_pairs(lambda: 0, lambda: 1).is_slower and len(calls) == 2 * (LEAD + 2)


# With few, some and many rows


def test_many_rows_are_measured_only_where_the_others_leave_a_doubt(monkeypatch, bert):
    hfaccel.optimize(bert, inplace=True)
    (layer, _) = fused(bert)
    asked = []

    def times(gain):
        return lambda layer, regime, own_forward=False: asked.append(regime.name) or Times(gain, 1.0)

    monkeypatch.setattr(speedups, "_time_layer", times(2.0))
    assert len(of_layers([layer])[layer]) == 2
    monkeypatch.setattr(speedups, "_time_layer", times(1.1))
    assert len(of_layers([layer])[layer]) == 3
    assert asked == ["few", "some", "few", "some", "many"]


def in_regime(monkeypatch, name, own_forward):
    """Fused layers are slower in this regime; their own forward on packed weights is as `own_forward`."""

    def times(layer, regime, own_forward_runs=False):
        return (own_forward if own_forward_runs else SLOWER) if regime.name == name else Times(1.2, 1.0)

    monkeypatch.setattr(
        speedups, "_time_layer", lambda layer, regime, own_forward=False: times(layer, regime, own_forward)
    )


def run_rows(model, batch, length):
    ids = torch.randint(5, 1000, (batch, length), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(input_ids=ids).last_hidden_state


@pytest.mark.parametrize(("name", "shape"), [("few", (1, 16)), ("some", (2, 60)), ("many", (3, 100))])
def test_the_own_forward_runs_where_it_is_faster(bert, monkeypatch, tmp_path, name, shape):
    in_regime(monkeypatch, name, FASTER)
    fast = hfaccel.optimize(bert, backend="torch")
    (line,) = lines(fast, "BERT layer")
    assert line.applied and f"with {name} rows its own forward runs" in line.reason
    with pytest.warns(RuntimeWarning):
        hfaccel.save(fast, tmp_path)
    for model in (fast, copy.deepcopy(fast), hfaccel.load(tmp_path)):
        for other in ((1, 16), (2, 60), (3, 100)):
            before = sum(hfaccel.report(model).stock_calls.values())
            torch.testing.assert_close(run_rows(model, *other), run_rows(bert, *other), rtol=0, atol=1e-5)
            calls = hfaccel.report(model).stock_calls
            assert (sum(calls.values()) > before) == (other == shape)
        assert set(calls) == {f"its own forward is faster here with {name} rows"}


def test_a_layer_that_is_slower_on_packed_weights_too_is_what_it_was(bert, monkeypatch, batch):
    expected = states(copy.deepcopy(bert), batch)
    in_regime(monkeypatch, "some", SLOWER)
    fast = hfaccel.optimize(bert, backend="torch")
    (line,) = lines(fast, "BERT layer")
    assert not line.applied and "0.50 times" in line.reason and "with some rows" in line.reason
    linears = [module for module in fast.encoder.modules() if isinstance(module, nn.Linear)]
    assert not fused(fast) and not any(isinstance(module.weight, PackedWeight) for module in linears)
    torch.testing.assert_close(states(fast, batch), expected, rtol=0, atol=1e-5)


def test_every_number_of_rows_has_a_regime():
    assert [regime_of(rows).name for rows in (1, 48, 49, 256, 257, 10**9)] == [
        *("few", "few", "some", "some", "many", "many")
    ]
    assert all(regime_of(each.batch * each.length) is each for each in REGIMES)


# What is not measured


def test_without_time_nothing_is_measured_and_all_is_applied(bert, monkeypatch):
    monkeypatch.setattr(speedups, "BUDGET", 0.0)
    fast = hfaccel.optimize(bert)
    assert len(fused(fast)) == 2 and all(line.gain is None for line in hfaccel.report(fast).outcomes)


def test_the_smallest_are_not_measured():
    assert of_linears({nn.Linear(64, 64): Kind.FLOAT32}) == {}


def test_of_the_largest_some_rows_are_measured(wide, monkeypatch):
    monkeypatch.setattr(speedups, "LARGEST", 1 << 17)
    shapes = []
    original = PackedWeight.pack.__func__
    monkeypatch.setattr(
        PackedWeight,
        "pack",
        classmethod(lambda cls, w, *rest: shapes.append(w.shape) or original(cls, w, *rest)),
    )
    assert of_linears(dict.fromkeys(wide, Kind.FLOAT32)).keys() == {*wide}
    assert set(shapes) == {(256, 512)}


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
    assert not Times(1.0, 1.02).is_slower and Times(1.0, 1.2).is_slower and not Times().is_slower
    assert (
        Times(1.0, 1.01, 0, 5).is_slower
        and not Times(1.0, 1.01, 0, 4).is_slower
        and not Times(1.0, 1.01, 3, 0).is_slower
    )


def test_lines_of_one_gain_are_merged():
    given = [Outcome("a", True, "b", gain=2.0), Outcome("a", True, "b"), Outcome("a", True, "b", 2, 2.0)]
    assert merge(given) == (Outcome("a", True, "b", 3, 2.0), Outcome("a", True, "b"))

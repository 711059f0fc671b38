"""int8 weights of which a few inputs stand out: these are not rounded, and cost the others nothing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from encoders import cosines, inputs, make, real, run

from hfaccel.engine import transform
from hfaccel.engine.calibration import smoothing
from hfaccel.engine.calibration.smoothing import exceptions
from hfaccel.engine.kernels import Kind, kernels, kernels_problem
from hfaccel.engine.weights.layout import EXACT
from hfaccel.engine.weights.linear import linear
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.memory import Arena
from hfaccel.native import Attention, FeedForward, Norms, Residual

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)

ROWS, COLUMNS = 70, 90


def pack(dense, factors):
    return PackedWeight.pack(dense, Arena(1 << 20, pages="default"), Kind.INT8, factors)


def uneven(outliers):
    """A weight and activations of which some inputs are far larger than the others."""
    torch.manual_seed(len(outliers))
    dense, rows = torch.randn(ROWS, COLUMNS), torch.randn(20, COLUMNS)
    for column in outliers:
        dense[::7, column] *= 60
        rows[:, column] *= 60
    return dense, rows


@pytest.mark.parametrize("outliers", [[0], [89, 3], [5, 6, 7, 8]])
def test_what_stands_out_is_found_and_exact(outliers):
    dense, rows = uneven(outliers)
    factors = exceptions(dense)
    assert set((factors == 0).nonzero().flatten().tolist()) == set(outliers)
    weight = pack(dense, factors)
    torch.testing.assert_close(weight.unpack()[:, outliers], dense[:, outliers], rtol=0, atol=0)
    expected = rows @ dense.t()
    exact, rounded = (
        (linear(rows, each, None) - expected).abs().mean() for each in (weight, pack(dense, None))
    )
    assert exact < rounded / 5


def test_the_largest_are_taken_where_there_are_more():
    dense, _ = uneven(range(EXACT + 3))
    dense[:, 2] *= 10
    factors = exceptions(dense)
    assert int((factors == 0).sum()) == EXACT and factors[2] == 0


def test_of_an_even_weight_nothing_is_taken():
    assert exceptions(torch.randn(ROWS, COLUMNS)) is None
    assert exceptions(torch.full((3, 2), float("nan"))) is None


def test_more_than_the_kernels_take_are_refused():
    factors = torch.ones(COLUMNS)
    factors[: EXACT + 1] = 0
    with pytest.raises(ValueError, match=f"at most {EXACT} factors may be 0, but {EXACT + 1} are"):
        pack(torch.randn(ROWS, COLUMNS), factors)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda weight: pickle.loads(pickle.dumps(weight))])
def test_copies_keep_them(way):
    dense, rows = uneven([4, 40])
    weight = pack(dense, exceptions(dense))
    torch.testing.assert_close(linear(rows, way(weight), None), linear(rows, weight, None))


def test_values_that_are_set_later_are_used():
    dense, rows = uneven([4, 40])
    weight = pack(dense, exceptions(dense))
    other = torch.randn(ROWS, COLUMNS)
    with torch.no_grad():
        weight.copy_(other)
    expected = torch.nn.functional.linear(rows, weight.unpack())
    torch.testing.assert_close(weight.unpack()[:, 40], other[:, 40], rtol=0, atol=0)
    assert cosines(linear(rows, weight, None), expected).min() > 0.9999


def test_matrices_that_share_their_inputs_round_them():
    dense, _ = uneven([1])
    weight = pack(dense, exceptions(dense))
    with pytest.raises(AssertionError, match="share their inputs"):
        weight.matrix(None, slice(0, 32))
    matrix = pack(torch.randn(64, 64), torch.ones(64).index_fill(0, torch.tensor([1]), 0.0)).matrix()
    plain = pack(torch.randn(64, 64), None).matrix()
    norm = kernels().Norm(0, 0, 1e-5, 0)
    for position in range(7):
        parts = [matrix if number == position else plain for number in range(7)]
        attention, wide = Attention(*parts[:4], 16, 0, 0.25), FeedForward(*parts[4:], 1)
        arguments = attention, wide, Norms(norm, norm), Residual(False)
        if position in (3, 6):  # output and down
            kernels().Layer(*arguments)
        else:
            with pytest.raises(ValueError, match="fit each other"):
                kernels().Layer(*arguments)


def loss_of_bert(monkeypatch, exact):
    model, given = make("BERT"), inputs("BERT")
    for layer in model.encoder.layer:
        with torch.no_grad():
            layer.output.dense.weight[::9, 7] *= 80
            layer.intermediate.dense.bias[7] += 3
    expected = run(model, given)
    if not exact:
        monkeypatch.setattr(smoothing, "exceptions", lambda weight: None)
    transform(model, kind=Kind.INT8)
    return float((1 - cosines(real(run(model, given), given), real(expected, given))).mean())


def test_a_model_gains_by_it(monkeypatch):
    exact = loss_of_bert(monkeypatch, exact=True)
    assert exact < loss_of_bert(monkeypatch, exact=False) / 2

"""A side is wrong if its results are off by more than its precision allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hfaccel.bench.answers import ALLOWED, ALLOWED_REGRET, judge, judge_regret
from hfaccel.bench.setting import PRECISIONS
from hfaccel.errors import UsageError

BASE = np.random.default_rng(0).normal(size=(4, 16, 64)).astype(np.float32)
numbers = arrays(np.float32, (3, 8), elements=st.floats(-100, 100, width=32))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_results_are_right_in_every_precision(precision):
    assert judge(BASE, BASE.copy(), precision).problem == ""
    assert judge_regret(0.0, precision).problem == ""


def test_float32_allows_rounding_and_no_more():
    assert judge(BASE, BASE * (1 + 1e-5), "fp32").problem == ""
    off = BASE.copy()
    off[0, 0, 0] += 0.1
    assert judge(BASE, off, "fp32").problem.startswith("its results differ by")
    assert judge(BASE, off, "bf16").problem == ""


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "fp32"])
def test_one_vector_that_points_elsewhere_is_wrong(precision):
    off = BASE.copy()
    off[2, 3] = -off[2, 3]
    assert judge(BASE, off, precision).problem
    assert judge(BASE, BASE * 1.01, precision).problem == ""


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("other", [BASE[:2], np.full_like(BASE, np.nan), np.zeros_like(BASE)])
def test_other_shapes_nan_and_zeros_are_wrong(precision, other):
    verdict = judge(BASE, other, precision)
    assert verdict.problem
    assert verdict.to_dict()["largest_difference"] is None or np.isfinite(
        verdict.to_dict()["largest_difference"]
    )


@given(numbers, numbers, st.sampled_from(PRECISIONS))
def test_a_difference_is_a_number_from_zero_on(one, two, precision):
    found = judge(one, two, precision).largest_difference
    assert found >= 0 and found == found
    assert judge(one, one, precision).largest_difference == 0


def test_numbers_without_vectors_are_one_vector():
    scores = np.asarray([0.1, 0.9, 0.5], np.float32)
    assert judge(scores, scores * 1.001, "int8").problem == ""
    assert judge(scores, scores[::-1].copy(), "int8").problem


def test_tokens_that_lie_behind_are_wrong():
    assert judge_regret(1.0, "int8").problem and judge_regret(float("nan"), "fp32").problem
    assert judge_regret(0.05, "bf16").problem == ""


def test_every_precision_has_a_bound():
    assert set(ALLOWED) == set(ALLOWED_REGRET) == set(PRECISIONS)
    with pytest.raises(UsageError, match="precision must be one of"):
        judge(BASE, BASE, "fp64")

"""Objectives: which number counts, and when a trial is given up."""

from __future__ import annotations

import math

import pytest

from hfaccel.errors import UsageError
from hfaccel.tune.objective import Measured, Objective, is_hopeless

CALLS = tuple(number / 1000 for number in range(1, 102))  # 1 to 101 ms
MEASURED = Measured((0.05, 0.04, 0.2), CALLS, items=8)


@pytest.mark.parametrize(
    ("objective", "score", "value", "text"),
    [
        (Objective(), 51, 51, "latency, p50"),
        (Objective("latency", 99), 100, 100, "latency, p99"),
        (Objective("throughput"), 1000 / 160, 160, "throughput"),
        (Objective("throughput", 90, 200), 1000 / 160, 160, "throughput with p90 within 200 ms"),
        (Objective("report"), 0.05, 0.05, "what the script reports, the least"),
        (Objective("report", maximize=True), 20, 0.05, "what the script reports, the most"),
    ],
)
def test_the_score_is_what_is_asked_for(objective, score, value, text):
    assert objective.score(MEASURED) == pytest.approx(score)
    assert objective.value(objective.score(MEASURED)) == pytest.approx(value)
    assert str(objective) == text and objective.is_kept(objective.score(MEASURED))


def test_beyond_the_limit_less_excess_is_better_and_all_is_worse_than_within():
    tight, tighter = Objective("throughput", 90, 50), Objective("throughput", 90, 10)
    assert not tight.is_kept(tight.score(MEASURED))
    assert tighter.score(MEASURED) > tight.score(MEASURED) > 1e6


@pytest.mark.parametrize(
    ("scores", "best", "hopeless"),
    [
        ([2.0], 1.0, False),
        ([2.0, 2.0], 1.0, True),
        ([2.0, 1.29], 1.0, False),
        ([1.29, 9.0], 1.0, False),
        ([2.0, 2.0], math.inf, False),
    ],
)
def test_a_trial_is_hopeless_where_even_its_best_sample_is_far_behind(scores, best, hopeless):
    assert is_hopeless(scores, best) == hopeless


@pytest.mark.parametrize(
    ("settings", "rule", "got"),
    [
        ({"kind": "energy"}, "must be one of latency, throughput, report", "'energy'"),
        ({"percentile": 0}, "`0 < percentile < 100` must hold", "got 0"),
        ({"percentile": math.nan}, "`0 < percentile < 100` must hold", "got nan"),
        ({"kind": "throughput", "limit": 0.0}, "`0 < limit` ms must hold", "got 0"),
        ({"limit": 5.0}, "a limit is for the objective throughput", "objective latency"),
    ],
)
def test_nonsense_is_refused(settings, rule, got):
    with pytest.raises(UsageError) as caught:
        Objective(**settings)
    assert rule in str(caught.value) and got in str(caught.value)

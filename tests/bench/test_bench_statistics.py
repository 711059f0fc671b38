"""Percentiles, the end of the warm-up, and how often a ratio is claimed, by simulation with fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfaccel.bench.statistics import LEAST_PAIRS, Ratio, is_warm, percentile, ratio_of, spread

seconds = st.floats(1e-6, 1e3)


@given(st.lists(seconds, min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_needs_as_many_samples_as_lie_beyond_it(samples, share):
    found = percentile(samples, share)
    assert (found is None) == (len(samples) < {0.5: 2, 0.9: 10, 0.99: 100}[share])
    assert found is None or min(samples) <= found <= max(samples)


def test_percentiles_of_known_numbers():
    samples = [float(number) for number in range(1, 102)]
    assert [percentile(samples, share) for share in (0.5, 0.9, 0.99)] == [51.0, 91.0, 100.0]
    assert spread(samples) == pytest.approx(91 / 51 - 1)
    assert spread(samples[:5]) is None


def test_calls_that_become_faster_are_not_warm():
    assert not is_warm([8, 7, 6, 5, 4, 3])
    assert is_warm([8, 7, 6, 5, 4, 3, 3, 3, 3, 3])
    assert not is_warm([1, 1, 1, 1, 1])
    assert is_warm([9, 1, 1.02, 1, 1.01, 1])  # one slow call at the start


def drifting(generator, pairs, factor=1.0):
    """Seconds of two sides in turn on a bad machine: the speed drifts, calls have outliers of every size."""
    count = 2 * pairs
    drift = np.cumsum(generator.standard_t(3, count) * 0.02)
    noise = generator.standard_t(2, count) * 0.03
    spikes = (generator.random(count) < 0.05) * generator.pareto(1.2, count)
    taken = (np.exp(drift + noise) * (1 + spikes)).reshape(pairs, 2)
    taken[1::2] = taken[1::2, ::-1]  # sides swap places
    return taken * (factor, 1.0)


def ratio_as_the_study(taken, pairs):
    """The study looks again after twice and thrice the pairs if the ratio is not settled."""
    for count in (pairs, 2 * pairs, 3 * pairs):
        ratio = ratio_of(*taken[:count].T)
        if ratio.settled:
            break
    return ratio


@pytest.mark.parametrize("pairs", [5, 6, 7, 10, 20])
@pytest.mark.parametrize("kind", ["drifting", "normal", "two values"])
def test_equal_sides_are_claimed_to_differ_in_less_than_one_of_twenty_studies(pairs, kind):
    generator = np.random.default_rng(pairs)

    def take():
        if kind == "drifting":
            return drifting(generator, 3 * pairs)
        if kind == "normal":
            return np.exp(generator.normal(0, 0.1, (3 * pairs, 2)))
        return generator.choice([1.0, 1.1], (3 * pairs, 2))  # a CPU with two clocks

    claims = [ratio_as_the_study(take(), pairs).significant for _ in range(1000)]
    assert sum(claims) < 50
    assert max(sum(claims[start : start + 100]) for start in range(0, 1000, 100)) <= 5


@pytest.mark.parametrize(("factor", "noise"), [(1.3, 0.03), (1.05, 0.005), (0.8, 0.03)])
def test_a_true_difference_is_claimed(factor, noise):
    generator = np.random.default_rng(1)
    taken = [np.exp(generator.normal(0, noise, (7, 2))) * (factor, 1) for _ in range(100)]
    ratios = [ratio_of(*one.T) for one in taken]
    assert sum(ratio.significant for ratio in ratios) >= 95
    assert sum(ratio.low <= factor <= ratio.high for ratio in ratios) >= 95


def test_fewer_than_five_pairs_claim_nothing():
    assert not ratio_of([2.0, 2.01, 2.0, 2.01], [1.0] * 4).significant
    assert ratio_of([2.0, 2.01, 2.0, 2.01, 2.0], [1.0] * 5).significant
    assert LEAST_PAIRS == 5


def test_five_ratios_on_one_side_are_not_enough():
    assert not ratio_of([1.02, 1.5, 1.1, 3.0, 1.3], [1.0] * 5).significant


def test_a_difference_below_a_percent_is_not_claimed_but_settled():
    ratio = ratio_of([1.005, 1.0051, 1.0049, 1.005, 1.005], [1.0] * 5)
    assert ratio.low > 1 and not ratio.significant and ratio.settled


@given(st.lists(st.tuples(seconds, seconds), min_size=2, max_size=40))
def test_the_interval_is_around_the_median_and_turns_with_the_sides(pairs):
    base, other = zip(*pairs, strict=True)
    ratio, turned = ratio_of(base, other), ratio_of(other, base)
    assert 0 < ratio.low <= ratio.median * (1 + 1e-9) and ratio.median <= ratio.high * (1 + 1e-9)
    assert math.isfinite(ratio.high)
    assert turned.median == pytest.approx(1 / ratio.median, rel=1e-6)
    assert ratio.significant == turned.significant or ratio.low == 1e-300 or turned.low == 1e-300


@pytest.mark.parametrize("sign", [1, -1])
def test_one_of_seven_pairs_on_the_other_side_forbids_a_claim(sign):
    """Student's t alone would claim: the others agree too well to be chance."""
    ratio = ratio_of(np.exp(sign * np.asarray([-0.02, *[0.1] * 6])), np.ones(7))
    assert ratio.low < 1 < ratio.high and not ratio.significant


def test_two_of_twenty_pairs_on_the_other_side_do_not_forbid_a_claim():
    ratio = ratio_of(np.exp([-0.02, -0.02, *[0.1] * 18]), np.ones(20))
    assert ratio.significant and ratio.low > 1.05


def test_the_interval_of_the_order_statistics_holds_for_the_median():
    """With 9 pairs the second least and the second largest: a t interval of these would be narrower."""
    logs = [0.0, *[0.1] * 7, 5.0]
    ratio = ratio_of(np.exp(logs), np.ones(9))
    assert ratio.low < math.exp(0.1) and ratio.median == pytest.approx(math.exp(0.1))


def test_too_few_pairs_have_no_ratio_and_sides_must_be_paired():
    assert ratio_of([1.0], [1.0]) is None and ratio_of([], []) is None
    with pytest.raises(ValueError, match=r"`len\(base\) == len\(other\)`"):
        ratio_of([1.0], [1.0, 2.0])


def test_as_json_a_ratio_says_what_it_is_to():
    assert Ratio(1.23456, 1.1, 1.3, 7).to_dict() == {
        "to": "baseline",
        "median": 1.2346,
        "low": 1.1,
        "high": 1.3,
        "significant": True,
        "pairs": 7,
    }

"""Which requests make a batch, and when: any sizes, any limits."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hfaccel.serve.forming import Limits, drained_in, next_batch, pace, starts_in

SIZES = st.lists(st.integers(1, 600), min_size=1, max_size=60)
LIMITS = st.builds(Limits, st.integers(1, 2000), st.integers(1, 40), st.floats(0, 1), st.integers(1, 100))
WIDE = Limits(max_tokens=10_000, max_batch=100, max_delay=0.0, call_tokens=16)


def cost(sizes, limits):
    return limits.call_tokens + max(sizes) * len(sizes)


def batches(sizes, limits):
    """The batches that a queue of these requests becomes, as indices into it."""
    waiting = list(range(len(sizes)))
    while waiting:
        chosen = next_batch([sizes[index] for index in waiting], limits)
        yield [waiting[place] for place in chosen]
        waiting = [index for place, index in enumerate(waiting) if place not in chosen]


@given(SIZES, LIMITS)
def test_a_batch_holds_the_oldest_and_keeps_the_limits(sizes, limits):
    batch = next_batch(sizes, limits)
    assert batch[0] == 0 and batch == sorted(set(batch)) and batch[-1] < len(sizes)
    assert len(batch) <= limits.max_batch
    padded = max(sizes[index] for index in batch) * len(batch)
    assert len(batch) == 1 or padded <= limits.max_tokens


@given(SIZES, LIMITS)
def test_everybody_is_served_once_and_nobody_late(sizes, limits):
    formed = list(batches(sizes, limits))
    assert sorted(index for batch in formed for index in batch) == list(range(len(sizes)))
    for number, batch in enumerate(formed):
        assert number <= min(batch)  # the k-th request is in the k-th batch at the latest


@given(SIZES, LIMITS)
def test_a_batch_costs_no_more_than_its_requests_one_by_one(sizes, limits):
    batch = [sizes[index] for index in next_batch(sizes, limits)]
    assert cost(batch, limits) <= sum(cost([size], limits) for size in batch)


@given(SIZES)
def test_where_padding_is_free_the_budget_is_used(sizes):
    limits = WIDE._replace(call_tokens=10_000, max_batch=1000, max_tokens=100_000)
    assert next_batch(sizes, limits) == list(range(len(sizes)))


@given(st.integers(1, 600), st.integers(1, 60), LIMITS)
def test_equal_lengths_go_in_order_of_arrival_as_many_as_fit(size, count, limits):
    fit = max(1, min(count, limits.max_batch, limits.max_tokens // size))
    assert next_batch([size] * count, limits) == list(range(fit))


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [
        ([5, 250, 6, 255, 4], [0, 2, 4]),  # near lengths, whatever lies between
        ([250, 5, 255, 6, 4], [0, 2]),
        ([100], [0]),
        ([10, 500], [0]),  # together they would cost twice as much as one after the other
        ([500, 10], [0]),
        ([3, 5, 8, 12], [0, 1, 2, 3]),  # all are cheaper than another call
    ],
)
def test_near_lengths_go_together(sizes, batch):
    assert next_batch(sizes, WIDE) == batch


def test_one_request_larger_than_the_budget_goes_alone():
    assert next_batch([50, 50, 50], WIDE._replace(max_tokens=40)) == [0]


@given(SIZES, st.floats(0, 10), LIMITS)
@example([1], 0.0, WIDE._replace(max_delay=0.5))
def test_nobody_waits_for_company_longer_than_the_deadline(sizes, waited, limits):
    delay = starts_in(sizes, waited, limits)
    assert delay >= 0
    full = len(sizes) >= limits.max_batch or sum(sizes) >= limits.max_tokens
    assert waited + delay == pytest.approx(max(waited, waited if full else limits.max_delay))


def test_the_pace_follows_what_happens():
    assert drained_in(10, None) == 1.0
    seen = pace(None, 2.0, 4)
    assert seen == 0.5
    for _ in range(60):
        seen = pace(seen, 1.0, 10)
    assert seen == pytest.approx(0.1, rel=1e-3)
    assert drained_in(30, seen) == pytest.approx(3.0, rel=1e-3)

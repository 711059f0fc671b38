"""Forming batches: pure decisions, for all lengths."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hfaccel.pipelines.schedule import (
    FIRST,
    PIECE,
    Limits,
    ahead,
    least,
    next_batch,
    span,
    window,
)

LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=60)
LIMITS = st.builds(Limits, rows=st.integers(1, 40), tokens=st.integers(1, 3000))


@given(LENGTHS, LIMITS)
def test_a_batch_keeps_its_limits_and_holds_the_oldest(lengths, limits):
    batch = next_batch(lengths, limits)
    assert batch[0] == 0 and batch == sorted(set(batch))
    assert len(batch) <= limits.rows
    assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= limits.tokens


@given(LENGTHS, LIMITS)
def test_a_batch_is_of_neighbours_in_length(lengths, limits):
    batch = [lengths[i] for i in next_batch(lengths, limits)]
    outside = [length for i, length in enumerate(lengths) if i not in next_batch(lengths, limits)]
    assert not [length for length in outside if min(batch) < length < max(batch)]


@given(LENGTHS, LIMITS)
def test_a_batch_is_as_large_as_its_limits_allow(lengths, limits):
    batch = next_batch(lengths, limits)
    rest = [length for i, length in enumerate(lengths) if i not in batch]
    longest = max(lengths[i] for i in batch)
    if rest and len(batch) < limits.rows:
        nearest = [length for length in rest if length >= longest][:1] or rest
        smallest = min(max(longest, length) for length in [*nearest, *rest])
        assert (len(batch) + 1) * smallest > limits.tokens


@given(LENGTHS, LIMITS)
def test_all_inputs_are_taken_in_the_end(lengths, limits):
    waiting, order = list(enumerate(lengths)), []
    while waiting:
        batch = set(next_batch([length for _, length in waiting], limits))
        order += [number for i, (number, _) in enumerate(waiting) if i in batch]
        waiting = [one for i, one in enumerate(waiting) if i not in batch]
    assert sorted(order) == list(range(len(lengths)))


def test_examples():
    assert next_batch([10, 90, 11, 9, 80], Limits(3)) == [0, 2, 3]
    assert next_batch([10, 12, 8], Limits(2)) == [0, 1]  # equally near
    assert next_batch([100, 10, 101, 99], Limits(4, tokens=303)) == [0, 2, 3]
    assert next_batch([100, 10, 101, 99], Limits(4, tokens=302)) == [0, 2]
    assert next_batch([5000, 1, 2], Limits(8)) == [0]
    assert next_batch([7] * 50, Limits(32)) == list(range(32))


@given(st.integers(1, 5000), st.booleans(), st.integers(0, 6000), st.integers(0, 9999), st.floats(1, 999))
def test_what_is_prepared_ahead_is_bounded(rows, free, waiting, tokens, mean):
    count = ahead(rows, free, waiting, tokens, mean)
    assert count >= 0 and (not free or count <= max(PIECE, 3 * tokens / mean + 1))
    assert count == 0 or waiting + count <= (window(rows) if free else rows)


@given(st.integers(1, 5000))
def test_what_is_read_is_bounded(rows):
    assert 16 <= window(rows) <= max(16, 8 * rows) and window(rows) <= 512
    assert least(rows, True, False) <= window(rows) < span(rows)


@given(st.integers(1, 5000))
def test_what_is_fixed_waits_for_a_whole_batch(rows):
    assert least(rows, False, False) == least(rows, False, True) == ahead(rows, False, 0, 1, 1) == rows


@given(st.integers(1, 5000))
def test_a_stream_is_not_read_further_than_its_batch(rows):
    assert 1 <= least(rows, True, True) <= min(rows, FIRST)
    assert least(rows, True, True) <= least(rows, True, False) <= FIRST
    assert least(1, True, False) == 1

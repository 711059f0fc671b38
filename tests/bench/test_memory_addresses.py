"""What is computed from addresses: gaps, alignment, the kernel's verdict, and places in the picture."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfaccel.bench.memory import kernel
from hfaccel.bench.memory.addresses import HUGE_PAGE, PAGE, Buffer, covered, layout, readable
from hfaccel.bench.memory.kernel import PROBES, judge, probe_alignment
from hfaccel.bench.memory.picture import BREAK, LONG, bars, colour, pictured

MIB = 1 << 20
BASE = 0x7F2295000000  # on a 2 MiB boundary

sizes = st.integers(1, 8 * MIB)
spaces = st.one_of(st.integers(0, 8 * MIB), st.integers(0, 1 << 44))


@st.composite
def placed(draw):
    """Buffers one after the other with gaps in between, from any address on, in any order."""
    address, buffers = draw(st.integers(0, 1 << 45)), []
    for size, gap in draw(st.lists(st.tuples(sizes, spaces), min_size=1, max_size=12)):
        buffers.append(Buffer(address, size, draw(st.none() | st.floats(0, 1))))
        address += size + gap
    return draw(st.permutations(buffers))


def test_layout_of_three_buffers():
    header = 64  # as allocators put in front
    buffers = [
        Buffer(BASE + header, MIB),
        Buffer(BASE + 3 * MIB, MIB),
        Buffer(BASE + MIB + header + 128, MIB),
    ]
    assert layout(buffers) == {
        "buffers": 3,
        "bytes": 3 * MIB,
        "span": 4 * MIB - header,
        "aligned": 1 / 3,
        "gaps": {"median": (128 + MIB - header - 128) // 2, "largest": MIB - header - 128, "adjacent": 0.5},
    }


def test_layout_of_nothing_and_of_one():
    assert layout([])["aligned"] is None and layout([])["gaps"]["median"] is None
    one = layout([Buffer(BASE + PAGE, 10)])
    assert one["aligned"] == 0 and one["span"] == 10 and one["gaps"]["largest"] is None


@given(placed())
def test_a_layout_does_not_depend_on_the_order_and_adds_up(buffers):
    described = layout(buffers)
    shuffled = list(buffers)
    random.Random(0).shuffle(shuffled)
    assert layout(shuffled) == described
    assert described["bytes"] <= described["span"]  # these do not overlap
    if len(buffers) == 2:
        assert described["span"] == described["bytes"] + described["gaps"]["largest"]


def test_buffers_that_share_memory_have_no_gap():
    """Tied weights are two parameters at one address."""
    gaps = layout([Buffer(BASE, MIB), Buffer(BASE, MIB), Buffer(BASE + 100, 10)])["gaps"]
    assert gaps["largest"] == 0 and gaps["adjacent"] == 1


def test_coverage_is_weighted_by_size_and_unknown_where_a_part_is():
    assert covered([Buffer(0, 300, 1.0), Buffer(300, 100, 0.0)]) == 0.75
    assert covered([Buffer(0, 300, 1.0), Buffer(300, 100)]) is None
    assert covered([]) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536 << 10, "1.5 MiB"),
        (3 << 50, "3.07e+03 TiB"),
    ],
)
def test_sizes_are_readable(count, text):
    assert readable(count) == text


# The kernel

ALIGNED = [BASE + 2 * HUGE_PAGE * number for number in range(PROBES)]
PACKED = [BASE - (HUGE_PAGE + PAGE) * number - PAGE for number in range(PROBES)]


@pytest.mark.parametrize(
    ("odd", "multiples", "verdict"),
    [
        (ALIGNED, ALIGNED, "old"),
        ([*ALIGNED[1:], PACKED[0]], ALIGNED, "old"),  # one fell into a hole
        (PACKED, ALIGNED, "new"),
        ([*PACKED[1:], BASE], [*ALIGNED[1:], PACKED[0]], "new"),
        (PACKED, PACKED, "none"),
        ([*ALIGNED[3:], *PACKED[3:]], ALIGNED, "unclear"),
        (PACKED, [*ALIGNED[3:], *PACKED[3:]], "unclear"),
    ],
)
def test_the_verdict_goes_by_most_of_the_addresses(odd, multiples, verdict):
    alignment = judge(odd, multiples)
    assert alignment.verdict == verdict
    assert f"{alignment.odd} of 6 odd sizes" in str(alignment)


def test_this_kernel_does_the_same_every_time():
    verdicts = {probe_alignment().verdict for _ in range(3)}
    assert len(verdicts) == 1 and verdicts <= {"old", "new", "none", "unclear"}


def test_the_mappings_are_private_as_those_of_malloc_are():
    """Shared ones, which are Python's default, are placed by other rules."""
    kept = []
    address = kernel._map(HUGE_PAGE, kept)
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(number, 16) for number in line.split()[0].split("-"))
        if low <= address < high:
            assert line.split()[1] == "rw-p" and high - address >= HUGE_PAGE
            break
    else:
        raise AssertionError(f"nothing is mapped at {address:x}")


# The picture


@given(placed())
def test_bars_keep_their_place_within_a_huge_page_and_their_order(buffers):
    drawn, breaks = bars(buffers)
    ordered = sorted(buffers)
    assert [bar.width for bar in drawn] == [buffer.size for buffer in ordered]
    assert [bar.left % HUGE_PAGE for bar in drawn] == [buffer.address % HUGE_PAGE for buffer in ordered]
    assert 0 <= drawn[0].left < HUGE_PAGE
    for before, after in pairwise(drawn):
        assert 0 <= after.left - before.left - before.width < LONG + HUGE_PAGE
    cut = {gap.left: gap.gap for gap in breaks}
    for left, after, buffer, following in zip(drawn, drawn[1:], ordered, ordered[1:], strict=False):
        end, gap = left.left + left.width, following.address - buffer.end
        assert cut.get(end, gap) == gap or gap == 0
        assert (gap >= LONG) == (after.left - end != gap or end in cut)


def test_a_long_gap_is_cut_short_and_told():
    drawn, breaks = bars([Buffer(BASE, MIB), Buffer(BASE + (1 << 40) + 64, MIB)])
    assert breaks == [(MIB, (1 << 40) + 64 - MIB)]
    assert BREAK <= drawn[1].left - MIB < BREAK + HUGE_PAGE


def test_nothing_is_drawn_of_nothing():
    assert bars([]) == ([], [])


def test_colours_tell_all_from_part_from_none():
    assert len({colour(huge) for huge in (1.0, 0.5, 0.0, None)}) == 4
    assert colour(0.999) == colour(1.0) and colour(0.001) == colour(0.0)


def test_untouched_buffers_are_drawn_only_where_there_are_no_others():
    touched = {"kind": "buffers", "touched": True}
    untouched = {"kind": "buffers", "touched": False}
    forward = {"kind": "forward", "touched": True}
    assert pictured([forward, untouched, touched]) == [touched]
    assert pictured([untouched]) == [untouched]
    assert pictured([forward]) == [forward]

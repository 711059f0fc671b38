"""Drawings put numbers where the axes say they are."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfaccel.bench.report.drawing import draw
from hfaccel.bench.report.drawing.heat import DARKEST, darkness
from hfaccel.bench.report.drawing.marks import Box, Line, Marker, Text
from hfaccel.bench.report.drawing.scales import apart, fitting, ticks
from hfaccel.bench.report.drawing.svg import to_svg
from hfaccel.bench.report.model import Axis, Bar, Bars, Heat, Look, Plot, Point, Series, Tile
from hfaccel.bench.report.theme import DARK, LIGHT, MARKERS

LOOK = Look("s1", "6 3", "circle")
VALUES = [(16.0, 3.0), (128.0, 40.0), (512.0, 900.0)]


def plot(log, points=VALUES, **changes):
    marks = tuple(Point(x, y, **changes) for x, y in points)
    return Plot("Batch 1", Axis("length", log), Axis("ms", log), (Series("torch", LOOK, marks),))


def of(kind, drawing):
    return [mark for mark in drawing.marks if isinstance(mark, kind)]


def axis(drawing, anchor, place):
    """Numbers beside an axis, with where they stand."""
    texts = [text for text in of(Text, drawing) if text.anchor == anchor and text.size == 11]
    return {float(text.text.replace(",", "")): place(text) for text in texts}


def read_off(written, at, log):
    """The value at a place, by two of the numbers beside the axis."""
    (low, start), *_, (high, end) = sorted(written.items())
    share = (at - start) / (end - start)
    return low * (high / low) ** share if log else low + share * (high - low)


@pytest.mark.parametrize("log", [False, True])
def test_marks_stand_where_the_axes_say(log):
    drawing = draw(plot(log))
    across = axis(drawing, "middle", lambda text: text.x)
    up = axis(drawing, "end", lambda text: text.y - 4)  # the middle of a number stands at its place
    assert len(across) > 1 and len(up) > 1
    for marker, (x, y) in zip(of(Marker, drawing), VALUES, strict=True):
        assert read_off(across, marker.x, log) == pytest.approx(x, rel=1e-6)
        assert read_off(up, marker.y, log) == pytest.approx(y, rel=1e-6)
    grid = {line.points[0][1] for line in of(Line, drawing) if line.colour == "grid"}
    assert sorted(grid) == pytest.approx(sorted(up.values()))


def test_the_numbers_of_an_axis_stand_outside_of_the_marks():
    drawing = draw(plot(True))
    left = min(marker.x for marker in of(Marker, drawing))
    bottom = max(marker.y for marker in of(Marker, drawing))
    numbers = [text for text in of(Text, drawing) if text.size == 11]
    assert all(text.x < left for text in numbers if text.anchor == "end")
    assert all(text.y > bottom for text in numbers if text.anchor == "middle")


def test_more_is_higher_and_the_line_to_p90_goes_up():
    drawing = draw(plot(True, high=1000.0))
    heights = [marker.y for marker in of(Marker, drawing)]
    assert heights == sorted(heights, reverse=True)
    (line,) = (line for line in of(Line, drawing) if line.dash == "6 3")
    assert line.points == tuple((marker.x, marker.y) for marker in of(Marker, drawing))
    whiskers = [line for line in of(Line, drawing) if line.colour == "s1" and not line.dash]
    assert len(whiskers) == 3 and all(line.points[1][1] < line.points[0][1] for line in whiskers)


def test_bars_are_as_long_as_their_numbers():
    bars = tuple(Bar(f"{value}", value, "", high=value * 1.5) for value in (2.0, 4.0, 8.0))
    drawing = draw(Bars("Panel", "ms", (*bars, Bar("broken", None, "exit code -9"))))
    lengths = [box.width for box in of(Box, drawing)]
    assert len(lengths) == 3
    assert [length / lengths[0] for length in lengths] == pytest.approx([1, 2, 4])
    ends = [max(x for x, _ in line.points) for line in of(Line, drawing) if line.colour == "ink"]
    assert max(ends) <= drawing.width
    assert "broken: exit code -9" in [text.text for text in of(Text, drawing)]


def test_a_hollow_bar_and_a_hollow_mark_have_no_fill():
    drawing = draw(Bars("Panel", "ms", (Bar("one", 1.0, "", hollow=True), Bar("two", 1.0, ""))))
    assert [bool(box.fill) for box in of(Box, drawing)] == [False, True]
    drawing = draw(plot(True, hollow=True))
    assert all(marker.hollow for marker in of(Marker, drawing))
    assert 'fill="var(--surface)" stroke="var(--s1)"' in to_svg(drawing)


def test_tiles_stand_in_their_rows_and_columns():
    tiles = tuple(Tile(row, column, 2.0**row, f"{row}{column}") for row in (0, 1) for column in (0, 1, 2))
    drawing = draw(Heat("torch", "length", "batch", ("16", "64", "128"), ("1", "8"), tiles))
    texts = {text.text: text for text in of(Text, drawing)}
    for row, name in enumerate(("1", "8")):
        assert texts[name].y == pytest.approx(texts[f"{row}0"].y, abs=1)
    for column, name in enumerate(("16", "64", "128")):
        assert texts[name].x == pytest.approx(texts[f"0{column}"].x)


def test_tiles_tell_faster_from_slower_and_from_unknown():
    values = (4.0, 0.5, None)
    tiles = tuple(Tile(0, place, value, "text") for place, value in enumerate(values))
    tiles = (*tiles, Tile(0, 3, 4.0, "text", hollow=True))
    drawing = draw(Heat("torch", "length", "batch", ("1", "2", "3", "4"), ("1",), tiles))
    assert [box.fill for box in of(Box, drawing)] == ["faster", "slower", "", ""]
    assert [bool(box.dash) for box in of(Box, drawing)] == [False, False, True, True]
    dark = [darkness(ratio) for ratio in (1.0, 1.1, 2.0, 8.0, 100.0)]
    assert dark == sorted(dark) and dark[-1] == dark[-2] == DARKEST
    assert darkness(0.5) == darkness(2.0)


@pytest.mark.parametrize("shape", MARKERS)
def test_every_marker_is_drawn_about_its_place(shape):
    look = Look("s1", "", shape)
    drawing = draw(Plot("", Axis("x"), Axis("y"), (Series("one", look, (Point(1.0, 1.0),), False),)))
    svg = to_svg(drawing)
    assert ("<circle" in svg) == (shape == "circle") and ("<polygon" in svg) == (shape != "circle")


def test_every_colour_is_known_in_the_light_and_in_the_dark():
    assert LIGHT.keys() == DARK.keys()


NUMBERS = st.lists(st.floats(-1e80, 1e80), max_size=6)


@given(NUMBERS, st.booleans(), st.booleans())
def test_a_scale_holds_all_numbers_and_has_a_few_round_ones(values, log, from_zero):
    values = [max(abs(value), 1e-80) for value in values] if log else values
    scale = fitting(values, 300.0, 40.0, log, from_zero)
    assert all(39.9 <= scale(value) <= 300.1 for value in values)
    written = ticks(scale)
    assert len(written) <= 8 and all(map(math.isfinite, written))
    slack = 1e-9 * max(abs(scale.low), abs(scale.high))  # ticks are rounded to what is written
    assert all(scale.low - slack <= value <= scale.high + slack for value in written)


@given(st.lists(st.tuples(st.floats(0, 400), st.floats(1, 80)), max_size=12))
def test_texts_are_kept_apart(places):
    places = sorted(places)
    kept = [places[number] for number in apart(places)]
    assert (not places) == (not kept)
    for (one, width), (other, more) in pairwise(kept):
        assert one + width / 2 <= other - more / 2

"""Bars from zero, each below its name and its numbers: names may be long, and a phone is narrow."""

from __future__ import annotations

from hfaccel.bench.report.drawing.marks import Box, Drawing, Line, Mark, Text, cut, width_of
from hfaccel.bench.report.drawing.scales import Scale
from hfaccel.bench.report.model import Bar, Bars
from hfaccel.bench.report.wording import short

WIDTH, LEFT, RIGHT, TOP, ROW, THICK = 340.0, 2.0, 6.0, 38.0, 36.0, 12.0


def draw_bars(panel: Bars) -> Drawing:
    ends = [bar.high or 0 for bar in panel.bars] + [bar.value or 0 for bar in panel.bars]
    scale = Scale(0.0, max([*ends, 1e-12]), LEFT, WIDTH - RIGHT)
    bottom = TOP + ROW * len(panel.bars)
    marks: list[Mark] = [
        Text(2, 14, cut(panel.title, WIDTH - 4, 13), bold=True, size=13, tip=panel.title),
        Text(2, 30, panel.label, "muted", size=11),
        Line(((LEFT, TOP), (LEFT, bottom)), "muted"),
    ]
    for row, bar in enumerate(panel.bars):
        marks += _bar(bar, TOP + ROW * row, scale)
    return Drawing(WIDTH, bottom + 4, tuple(marks), describe(panel))


def _bar(bar: Bar, y: float, scale: Scale) -> list[Mark]:
    base = y + 15
    room = WIDTH - LEFT - RIGHT - 6
    if bar.value is None:
        words = cut(f"{bar.name}: {bar.text}", room)
        return [Text(LEFT + 6, base, words, "bad", tip=f"{bar.name}: {bar.text}")]
    name = cut(bar.name, room - width_of(bar.text, 11))
    top = y + 19
    length = max(1.0, scale(bar.value) - LEFT)
    return [
        Text(LEFT + 6, base, name, tip=bar.name),
        Text(WIDTH - RIGHT, base, bar.text, "muted", "end", 11),
        Box(LEFT, top, length, THICK, "" if bar.hollow else bar.colour, border=bar.colour, tip=bar.tip),
        *_whisker(bar, scale, top + THICK / 2),
    ]


def _whisker(bar: Bar, scale: Scale, y: float) -> list[Mark]:
    if bar.high is None or bar.value is None or bar.high <= bar.value:
        return []
    start, end = scale(bar.value), scale(bar.high)
    return [Line(((start, y), (end, y)), "ink"), Line(((end, y - 3), (end, y + 3)), "ink")]


def describe(panel: Bars) -> str:
    """Bars in words."""
    said = [
        f"{bar.name}: {bar.text or short(bar.value or 0)}{', not significant' * bar.hollow}"
        for bar in panel.bars
    ]
    return f"{panel.title}, {panel.label}. {'; '.join(said)}."

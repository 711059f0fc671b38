"""Throughput over real texts by the share of computed tokens that are padding."""

from __future__ import annotations

from collections.abc import Sequence

from hfaccel.bench.report.figures import cells as of
from hfaccel.bench.report.model import Axis, Figure, Plot, Point, Series, make_figure
from hfaccel.bench.report.reading import Cell, Result
from hfaccel.bench.report.wording import percent, short

READING = "A mark is one setting. Higher is faster; further left, fewer of the computed tokens are padding."


def padding(result: Result) -> Figure | None:
    """A panel for each corpus and unit, if the share of padding differs within it."""
    known = [cell for cell in of.drawable(result.cells, "throughput") if waste(cell) is not None]
    panels = []
    for (name, unit), group in of.grouped(known, _corpus).items():
        if len({waste(cell) for cell in group}) > 1:
            x = Axis("padding, % of computed tokens")
            panels.append(Plot(name, x, Axis(unit or "per second", from_zero=True), _series(result, group)))
    notes = [of.NOT_SIGNIFICANT] if any(map(of.hollow, known)) else []
    return make_figure("padding", "Throughput by padding", READING, panels, notes)


def waste(cell: Cell) -> float | None:
    """The share of the computed tokens that are padding."""
    tokens, padded = cell.work.get("tokens"), cell.work.get("padded_tokens")
    if not isinstance(tokens, int | float) or not isinstance(padded, int | float) or not 0 < tokens <= padded:
        return None
    return 1 - tokens / padded


def _corpus(cell: Cell) -> tuple[str, str]:
    name = cell.work.get("name") or cell.work.get("task") or "texts"
    return str(name), cell.throughput_unit


def _series(result: Result, cells: Sequence[Cell]) -> tuple[Series, ...]:
    looks = of.looks(result)
    return tuple(
        Series(of.side_label(group[0]), looks[side], tuple(map(_point, group)), joined=False)
        for side, group in of.grouped(cells, of.side).items()
    )


def _point(cell: Cell) -> Point:
    share, rate = waste(cell) or 0.0, cell.number("throughput") or 0.0
    tip = f"{cell.setting.label()}: {short(rate)} {cell.throughput_unit}, {percent(share)} padding"
    return Point(100 * share, rate, hollow=of.hollow(cell), tip=tip)

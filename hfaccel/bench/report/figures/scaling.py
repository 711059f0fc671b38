"""Throughput by the number of instances that compute at the same time."""

from __future__ import annotations

from collections.abc import Sequence

from hfaccel.bench.report.figures import cells as of
from hfaccel.bench.report.figures.latency import lines
from hfaccel.bench.report.model import Axis, Figure, Plot, make_figure
from hfaccel.bench.report.reading import Cell, Result

READING = "Throughput of all instances together, each on cores of its own. Higher is faster."
FREE = ("instances", "threads")


def instances(result: Result) -> Figure | None:
    """A panel for each work that was measured with several numbers of instances."""
    chosen = of.usual(result.cells, FREE)
    panels = []
    drawn: list[Cell] = []
    for title, group in of.by_work(of.drawable(chosen, "throughput")).items():
        best = of.repeated(_best(group), lambda cell: cell.setting.instances)
        counts = sorted({cell.setting.instances for cell in best})
        if len(counts) > 1:
            drawn += best
            y = Axis(group[0].throughput_unit or "per second", from_zero=True)
            series = lines(result, best, lambda cell: cell.setting.instances, "throughput")
            panels.append(
                Plot(
                    title[:1].upper() + title[1:], Axis("instances", log=True, ticks=tuple(counts)), y, series
                )
            )
    sides = set(map(of.side, drawn))
    notes = of.notes(drawn, FREE, [cell for cell in chosen if of.side(cell) in sides])
    if any(of.threads(cell) for cell in drawn):
        notes.append("Of several numbers of threads for an instance, the fastest is drawn.")
    return make_figure("instances", "Throughput by instances", READING, panels, notes)


def _best(cells: Sequence[Cell]) -> list[Cell]:
    """Of each side and number of instances, the cell with the largest throughput."""
    groups = of.grouped(cells, lambda cell: (of.side(cell), cell.setting.instances))
    return [max(group, key=lambda cell: cell.number("throughput") or 0) for group in groups.values()]

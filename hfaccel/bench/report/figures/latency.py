"""Latency by length and by cores, a line for each side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hfaccel.bench.report.figures import cells as of
from hfaccel.bench.report.model import Axis, Figure, Plot, Point, Series, make_figure
from hfaccel.bench.report.reading import Cell, Result

LATENCY = Axis("ms per call", log=True)
READING = (
    "Median time of a call; the thin line above a mark reaches to p90. Lower is faster. "
    "Both axes are logarithmic."
)


def by_length(result: Result) -> Figure | None:
    """A panel for each batch size, with the baseline's number of threads."""
    shaped = [cell for cell in result.cells if of.shape(cell)]
    chosen = of.of_equal_threads(result, of.usual(shaped, ("threads",)))
    drawn = of.drawable(chosen)
    panels = []
    for batch, group in sorted(of.grouped(drawn, lambda cell: (of.shape(cell) or (0, 0))[0]).items()):
        lengths = sorted({(of.shape(cell) or (0, 0))[1] for cell in group})
        if len(lengths) > 1:
            axis = Axis("length in tokens", log=True, ticks=tuple(lengths))
            series = lines(result, group, lambda cell: (of.shape(cell) or (0, 0))[1])
            panels.append(Plot(f"Batch {batch}", axis, LATENCY, series))
    notes = [*threads_note(drawn), *of.notes(drawn, ("threads",), chosen)]
    return make_figure("latency-by-length", "Latency by length", READING, panels, notes)


def by_cores(result: Result) -> Figure | None:
    """A panel for each shape."""
    shaped = [cell for cell in result.cells if of.shape(cell) and (of.threads(cell) or 0) > 0]
    chosen = of.usual(shaped, ("threads",))
    drawn = of.drawable(chosen)
    panels = []
    for title, cells in of.by_work(sorted(drawn, key=lambda cell: of.shape(cell) or (0, 0))).items():
        group = of.repeated(cells, lambda cell: of.threads(cell) or 0)
        counts = sorted({of.threads(cell) or 0 for cell in group})
        if len(counts) > 1:
            axis = Axis("threads, each on a core", log=True, ticks=tuple(counts))
            series = lines(result, group, lambda cell: of.threads(cell) or 0)
            panels.append(Plot(title[:1].upper() + title[1:], axis, LATENCY, series))
    return make_figure(
        "latency-by-cores", "Latency by cores", READING, panels, of.notes(drawn, ("threads",), chosen)
    )


def lines(
    result: Result, cells: Sequence[Cell], x: Callable[[Cell], float], number: str = "p50_ms"
) -> tuple[Series, ...]:
    """A series for each side, its points in ascending order."""
    looks = of.looks(result)
    return tuple(
        Series(of.side_label(group[0]), looks[side], tuple(_points(sorted(group, key=x), x, number)))
        for side, group in of.grouped(cells, of.side).items()
    )


def _points(cells: Sequence[Cell], x: Callable[[Cell], float], number: str) -> list[Point]:
    return [
        Point(
            x(cell),
            cell.number(number) or 0.0,
            cell.number("p90_ms") if number == "p50_ms" else None,
            of.hollow(cell),
            of.tip(cell),
        )
        for cell in cells
    ]


def threads_note(cells: Sequence[Cell]) -> list[str]:
    counts = sorted({of.threads(cell) or 0 for cell in cells} - {0})
    return [f"Threads: {', '.join(f'{count:g}' for count in counts)}."] if counts else []

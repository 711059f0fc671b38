"""Works of other kinds: generation, pipelines, texts, whole programs."""

from __future__ import annotations

from collections.abc import Sequence

from hfaccel.bench.report.figures import cells as of
from hfaccel.bench.report.figures.choices import bar
from hfaccel.bench.report.model import Bar, Bars, Figure, make_figure
from hfaccel.bench.report.reading import Cell, Result

TIMES = {"first_token_ms": "Time to the first token", "per_token_ms": "Time per token"}


def generation(result: Result) -> Figure | None:
    """A panel for each prompt and each of the two times."""
    cells = of.usual([cell for cell in result.cells if cell.work.get("kind") == "generation"], ("threads",))
    panels = [
        Bars(f"{title}: {label}", "ms", _bars(result, group, number))
        for label, group in of.by_work(of.of_equal_threads(result, cells)).items()
        for number, title in TIMES.items()
        if of.drawable(group, number)
    ]
    reading = "Median times. Shorter is faster."
    return make_figure("generation", "Generation", reading, panels, of.notes(cells, ("threads",)))


def programs(result: Result) -> Figure | None:
    """A panel for each work that is neither a shape nor generation."""
    others = [cell for cell in result.cells if cell.work.get("kind") not in ("shapes", "generation")]
    chosen = of.of_equal_threads(result, of.usual(others, ("threads", "token_budget")))
    panels = [
        Bars(label, "ms", _bars(result, group, "p50_ms"))
        for label, group in of.by_work(chosen).items()
        if of.drawable(group)
    ]
    reading = "Median time of all texts or of a whole run; the thin line reaches to p90. Shorter is faster."
    drawn = of.drawable(chosen)
    notes = of.notes(drawn, ("threads", "token_budget"))
    return make_figure("programs", "Texts, pipelines and programs", reading, panels, notes)


def _bars(result: Result, cells: Sequence[Cell], number: str) -> tuple[Bar, ...]:
    looks = of.looks(result)
    return tuple(bar(cell, _name(cell), looks[of.side(cell)].colour, number) for cell in cells)


def _name(cell: Cell) -> str:
    budget = cell.setting.token_budget
    return of.side_label(cell) + ("" if budget is None else f", {budget:,} tokens a batch")

"""How many times faster than the baseline: batch sizes by lengths, a heat map for each side."""

from __future__ import annotations

from collections.abc import Sequence

from hfaccel.bench.report.figures import cells as of
from hfaccel.bench.report.figures.latency import threads_note
from hfaccel.bench.report.model import Figure, Heat, Tile, make_figure
from hfaccel.bench.report.reading import Cell, Result
from hfaccel.bench.report.wording import times

READING = (
    "Times faster than the baseline, as the median over pairs measured in turn. Blue: faster; orange: "
    "slower. The darker, the further from 1."
)
DASHED = "Dashed and without colour: the difference from the baseline is not significant."


def speedup(result: Result) -> Figure | None:
    shaped = [cell for cell in result.cells if of.shape(cell) and cell.setting != result.baseline]
    chosen = of.of_equal_threads(result, of.usual(shaped, ("threads",)))
    panels = [
        _heat(of.side_label(group[0]), group)
        for group in of.grouped(chosen, of.side).values()
        if any(cell.ratio is not None and cell.status == "measured" for cell in group)
    ]
    drawn = [cell for cell in chosen if cell.status == "measured" and cell.ratio is not None]
    dashed = [DASHED] if any(map(of.hollow, drawn)) else []
    said = [f"Baseline: {result.baseline.label()}.", *threads_note(drawn), *dashed]
    notes = [*said, *of.other_values(drawn, ("threads",))]
    return make_figure("speedup", "Speed-up by batch size and length", READING, panels, notes)


def _heat(title: str, cells: Sequence[Cell]) -> Heat:
    shapes = {place: cell for cell in cells if (place := of.shape(cell)) is not None}
    batches = sorted({batch for batch, _ in shapes})
    lengths = sorted({length for _, length in shapes})
    tiles = [
        _tile(batches.index(batch), lengths.index(length), cell) for (batch, length), cell in shapes.items()
    ]
    return Heat(title, "length", "batch", tuple(map(str, lengths)), tuple(map(str, batches)), tuple(tiles))


def _tile(row: int, column: int, cell: Cell) -> Tile:
    if cell.status != "measured" or cell.ratio is None:
        word = cell.status if cell.status != "measured" else "?"
        reason = cell.reason or "no ratio to the baseline is known"
        return Tile(row, column, None, word, tip=f"{of.work_label(cell)}: {reason}")
    return Tile(row, column, cell.ratio.median, times(cell.ratio.median), of.hollow(cell), of.tip(cell))

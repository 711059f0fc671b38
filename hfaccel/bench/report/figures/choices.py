"""What one choice changes while all else stays: allocators, OpenMP runtimes, huge pages."""

from __future__ import annotations

from collections.abc import Sequence

from hfaccel.bench.report.figures import cells as of
from hfaccel.bench.report.model import Bar, Bars, Figure, make_figure
from hfaccel.bench.report.reading import Cell, Result
from hfaccel.bench.report.wording import counted, short, times
from hfaccel.bench.setting import Setting

READING = (
    "Median time of a call; the thin line reaches to p90. Shorter is faster. "
    "Within a panel nothing else differs."
)


def allocators(result: Result) -> Figure | None:
    return _compared(result, "allocators", "Allocators", ("allocator",))


def openmp(result: Result) -> Figure | None:
    return _compared(
        result, "openmp", "OpenMP runtimes and how their threads wait", ("omp_runtime", "wait_policy")
    )


def huge_pages(result: Result) -> Figure | None:
    return _compared(result, "huge-pages", "Huge pages", ("huge_pages",))


def _compared(result: Result, name: str, title: str, axes: tuple[str, ...]) -> Figure | None:
    """A panel for each group of cells that differ in these axes only, if any was measured twice."""
    groups = of.grouped(result.cells, lambda cell: (of.work_label(cell), of.rest(cell.setting, axes)))
    shown = [group for group in groups.values() if _differs(group, axes)]
    panels = [Bars(_title(group[0], axes), "ms per call", _bars(group, axes)) for group in shown]
    drawn = [cell for group in shown for cell in of.drawable(group)]
    notes = [of.NOT_SIGNIFICANT] if any(map(of.hollow, drawn)) else []
    return make_figure(name, title, READING, panels, notes)


def _differs(cells: Sequence[Cell], axes: tuple[str, ...]) -> bool:
    return len({_values(cell, axes) for cell in of.drawable(cells)}) > 1


def _values(cell: Cell, axes: tuple[str, ...]) -> tuple[object, ...]:
    return tuple(getattr(cell.setting, axis) for axis in axes)


def _title(cell: Cell, axes: tuple[str, ...]) -> str:
    threads = of.threads(cell)
    counts = [] if threads is None else [counted(round(threads), "thread")]
    if cell.setting.instances > 1:
        counts.append(f"{cell.setting.instances} instances")
    return ", ".join([of.side_label(cell), of.work_label(cell), *counts])


def _bars(cells: Sequence[Cell], axes: tuple[str, ...]) -> tuple[Bar, ...]:
    stock = tuple(getattr(Setting(), axis) for axis in axes)
    faults = "omp_runtime" not in axes
    return tuple(
        bar(cell, _name(cell, axes), "s0" if _values(cell, axes) == stock else "s1", faults=faults)
        for cell in cells
    )


def _name(cell: Cell, axes: tuple[str, ...]) -> str:
    """ "intel, passive waits": what is not left to the program."""
    words = [str(getattr(cell.setting, axis)) for axis in axes]
    if "wait_policy" in axes:
        words = [f"{words[0]} OpenMP", *([f"{words[1]} waits"] if cell.setting.wait_policy else [])]
    return ", ".join(words)


def bar(cell: Cell, name: str, colour: str, number: str = "p50_ms", faults: bool = False) -> Bar:
    """A cell as a bar; without a right result, as the reason."""
    value = cell.number(number)
    if cell.status != "measured" or value is None:
        why = cell.reason or "no time is known"
        return Bar(
            name, None, why if cell.status == "measured" else f"{cell.status}: {cell.reason}".strip(": ")
        )
    whole = number == "p50_ms"
    words = [f"{short(value)} ms"]
    words += [times(cell.ratio.median)] if cell.ratio is not None and whole else []
    count = cell.number("page_faults") if faults else None
    words += [f"{short(count)} faults"] if count is not None else []
    high = cell.number("p90_ms") if whole else None
    return Bar(name, value, " · ".join(words), high, of.hollow(cell), colour, of.tip(cell))

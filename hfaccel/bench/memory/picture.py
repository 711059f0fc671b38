"""A picture of the address space: a strip for each configuration, drawn from measured addresses.

Needs matplotlib, which the extra `plots` installs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hfaccel.bench.memory.addresses import HUGE_PAGE, Buffer, readable
from hfaccel.bench.memory.rounds import Document
from hfaccel.errors import HfaccelError, UsageError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

LONG = 4 * HUGE_PAGE  # bytes: a gap of this size or more is drawn as BREAK
BREAK = 2 * HUGE_PAGE
WIDTH = 96 * HUGE_PAGE  # bytes of a strip that are drawn
FORMATS = (".svg", ".png", ".pdf")
COLOURS = (
    (0.995, "tab:green", "on huge pages"),
    (0.005, "gold", "in part"),
    (0.0, "tab:red", "on 4 KiB pages"),
)
UNKNOWN = ("tab:gray", "not known")


class Bar(NamedTuple):
    """A drawn buffer: its offset from the strip's beginning and its width, in bytes."""

    left: int
    width: int
    huge: float | None


class Break(NamedTuple):
    """A long gap that was cut short: its offset, and its real size in bytes."""

    left: int
    gap: int


def bars(buffers: Iterable[Buffer]) -> tuple[list[Bar], list[Break]]:
    """Bars and breaks in ascending order.

    The strip begins on a 2 MiB boundary and gaps are cut by multiples of 2 MiB, so a bar's place within its
    huge page stays what it is.
    """
    ordered = sorted(buffers)
    cut = ordered[0].address // HUGE_PAGE * HUGE_PAGE if ordered else 0  # subtracted from addresses
    drawn: list[Bar] = []
    breaks: list[Break] = []
    end = 0
    for buffer in ordered:
        left = buffer.address - cut
        if drawn and left - end >= LONG:
            breaks.append(Break(end, left - end))
            surplus = (left - end - BREAK) // HUGE_PAGE * HUGE_PAGE
            cut, left = cut + surplus, left - surplus
        drawn.append(Bar(left, buffer.size, buffer.huge))
        end = max(end, left + buffer.size)
    return drawn, breaks


def colour(huge: float | None) -> str:
    if huge is None:
        return UNKNOWN[0]
    return next(name for least, name, _ in COLOURS if huge >= least)


def pictured(workloads: Sequence[Document]) -> list[Document]:
    """The workloads with touched buffers; all workloads where there are none."""
    touched = [workload for workload in workloads if workload["kind"] == "buffers" and workload["touched"]]
    return touched or list(workloads)


def check_picture(path: str) -> None:
    """Raise before the measurement, which may take hours, what would make `draw` fail afterwards."""
    if Path(path).suffix not in FORMATS:
        raise UsageError(f"a picture must end in {', '.join(FORMATS)}, but got {path!r}")
    if not Path(path).resolve().parent.is_dir():
        raise UsageError(f"a picture must be in a folder that exists, but got {path!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise HfaccelError(
            f"a picture needs matplotlib, but it cannot be imported ({error}); pip install 'hfaccel[plots]'"
        ) from None


def draw(report: Document, path: str) -> None:
    """Write the picture of a report (what `hfaccel bench memory --json` prints) to `path`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = pictured(report["workloads"])
    heights = [len(panel["results"]) + 1 for panel in panels]
    figure = Figure(figsize=(12, 0.35 * sum(heights) + 1.2), layout="constrained")
    for axes, panel in zip(
        figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0], panels, strict=True
    ):
        _draw_panel(axes, panel)
    figure.suptitle(f"Linux {report['kernel']}: {report['alignment']['text']}", fontsize=9)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=5, fontsize=8)
    with rc_context({"svg.hashsalt": "hfaccel"}):  # the same report gives the same file
        figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def _draw_panel(axes: Axes, panel: Document) -> None:
    results = [result for result in panel["results"] if result.get("buffers")]
    reach = HUGE_PAGE
    for row, result in enumerate(results):
        drawn, breaks = bars(Buffer(*buffer) for buffer in result["buffers"])
        shown = [bar for bar in drawn if bar.left < WIDTH]
        reach = max(reach, *(bar.left + bar.width for bar in shown))
        axes.broken_barh(
            [(bar.left, bar.width) for bar in shown],
            (row - 0.35, 0.7),
            facecolors=[colour(bar.huge) for bar in shown],
            edgecolors="black",
            linewidth=0.3,
        )
        for left, gap in breaks:
            if left < WIDTH:
                axes.text(
                    left + BREAK / 2, row, f"···\n{readable(gap)}", ha="center", va="center", fontsize=6
                )
    _draw_grid(axes, min(reach, WIDTH))
    axes.set_yticks(range(len(results)), [_label(result) for result in results], fontsize=8)
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.set_title(panel["name"], fontsize=9, loc="left")


def _label(result: Document) -> str:
    huge = result["huge"]
    return f"{result['way']}  {'?' if huge is None else f'{huge:.0%}'}"


def _draw_grid(axes: Axes, reach: int) -> None:
    pages = -(-reach // HUGE_PAGE)
    for page in range(pages + 1):
        axes.axvline(page * HUGE_PAGE, color="lightgray", linewidth=0.5, zorder=0)
    step = max(1, pages // 12)
    marks = range(0, pages + 1, step)
    axes.set_xticks([mark * HUGE_PAGE for mark in marks], [f"{2 * mark}" for mark in marks], fontsize=7)
    axes.set_xlabel("MiB from the 2 MiB boundary below the first buffer; a line every 2 MiB", fontsize=7)
    axes.set_xlim(0, pages * HUGE_PAGE)


def _legend() -> list[Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    known = [Patch(facecolor=name, edgecolor="black", label=text) for _, name, text in COLOURS]
    dots = Line2D([], [], linestyle="", marker="$···$", color="black", label="a longer gap, cut short")
    return [*known, Patch(facecolor=UNKNOWN[0], edgecolor="black", label=UNKNOWN[1]), dots]

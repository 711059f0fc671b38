"""The results of scaling.py as a picture: `python benchmarks/scaling_picture.py FILE.json FILE.svg`.

Lines differ in mark, dashes and grey, not in colour: it can be printed, and read without colour vision.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bars import best
from scaling_bars import EVERYWHERE, RIVALS, rivals

STYLES = (  # mark, dashes, grey, by number of threads in ascending order
    ("o", "-", "black"),
    ("s", "--", "0.25"),
    ("^", "-.", "0.4"),
    ("D", ":", "0.1"),
    ("v", (0, (1, 1)), "0.5"),
    ("P", (0, (5, 1, 1, 1)), "0.2"),
)
TICKS = (0.25, 0.35, 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 3, 4, 6, 8, 12, 16)
TITLES = {"eager": "eager's time over hfaccel's", "openvino": "OpenVINO's time over hfaccel's"}
HOLLOW = "white"  # inside of a mark whose rival was not capped as asked


class Point(NamedTuple):
    case: str
    ratio: float
    capped: bool


def points(rows: Sequence[dict[str, Any]], rival: str, precision: str) -> dict[int, list[Point]]:
    """Threads, ascending -> points in the order of the cells. The best side of that rival counts."""
    lines: dict[int, list[Point]] = {}
    for row in sorted((row for row in rows if "ms" in row), key=_place):
        found = best(row["ratio"], rivals(rival, row["precision"]))
        if row["precision"] == precision and found:
            uncapped = {found[0], f"hfaccel {precision}"} & set(row["not_capped"])
            lines.setdefault(row["threads"], []).append(Point(row["case"], found[1], not uncapped))
    return dict(sorted(lines.items()))


def limits(rows: Sequence[dict[str, Any]], rival: str) -> tuple[float, float]:
    """Of the axis of ratios, which a rival's panels share: from one of TICKS to another, 1 within."""
    seen = [
        point.ratio
        for precision in {row["precision"] for row in rows}
        for line in points(rows, rival, precision).values()
        for point in line
    ]
    low = max((tick for tick in TICKS if tick < min([1.0, *seen])), default=min([*seen, TICKS[0]]))
    high = min((tick for tick in TICKS if tick > max([1.0, *seen])), default=max([*seen, TICKS[-1]]))
    return low, high


def _place(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(map(int, row["case"].strip("()").split(",")))


def draw(results: Path, picture: Path) -> None:
    """Write the picture of a file of results."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    document = json.loads(results.read_text())
    rows = [row for row in document["rows"] if "ms" in row]
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    shown = [rival for rival in RIVALS if any(points(rows, rival, precision) for precision in precisions)]
    if not shown:
        return
    figure = Figure(figsize=(3.6 * len(precisions) + 0.6, 2.9 * len(shown) + 0.9), layout="constrained")
    grid = figure.subplots(len(shown), len(precisions), squeeze=False, sharey="row", sharex=True)
    for line, rival in zip(grid, shown, strict=True):
        for axes, precision in zip(line, precisions, strict=True):
            _draw_panel(axes, rows, rival, precision)
        line[0].set_ylabel(TITLES[rival], fontsize=9)
    counts = sorted({row["threads"] for row in rows})
    figure.legend(handles=_legend(counts, rows), loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(_title(document), fontsize=9)
    with rc_context({"svg.hashsalt": "hfaccel"}):  # the same results give the same file
        figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None, dpi=150)


def _draw_panel(axes: Any, rows: Sequence[dict[str, Any]], rival: str, precision: str) -> None:
    cases = list(dict.fromkeys(row["case"] for row in sorted(rows, key=_place)))
    counts = sorted({row["threads"] for row in rows})
    for threads, line in points(rows, rival, precision).items():
        mark, dashes, grey = _style(counts, threads)
        places = [cases.index(point.case) for point in line]
        axes.plot(places, [point.ratio for point in line], linestyle=dashes, color=grey, linewidth=1.2)
        for place, point in zip(places, line, strict=True):
            inside = grey if point.capped else HOLLOW
            axes.plot(place, point.ratio, mark, color=grey, markerfacecolor=inside, markersize=5)
    axes.axhline(EVERYWHERE, color="black", linewidth=2, zorder=0)
    axes.set_yscale("log", base=2)
    axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS], fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(*limits(rows, rival))
    axes.grid(axis="y", color="0.85", linewidth=0.5)
    axes.set_xticks(range(len(cases)), cases, rotation=30, fontsize=8)
    axes.set_xlim(-0.4, len(cases) - 0.6)
    axes.set_title(precision, fontsize=9, loc="left")


def _style(counts: Sequence[int], threads: int) -> tuple[Any, Any, str]:
    return STYLES[list(counts).index(threads) % len(STYLES)]


def _legend(counts: Sequence[int], rows: Sequence[dict[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    lines = []
    for threads in counts:
        mark, dashes, grey = _style(counts, threads)
        label = "1 thread" if threads == 1 else f"{threads} threads"
        lines.append(Line2D([], [], marker=mark, linestyle=dashes, color=grey, label=label))
    bar = Line2D([], [], color="black", linewidth=2, label="equally fast; above, hfaccel is faster")
    hollow = Line2D(
        [], [], marker="o", linestyle="", color="black", markerfacecolor=HOLLOW, label="not capped"
    )
    return [*lines, bar, *([hollow] if any(row["not_capped"] for row in rows) else [])]


def _title(document: dict[str, Any]) -> str:
    kernels = {facts.get("kernels") for row in document["rows"] for facts in row.get("facts", {}).values()}
    named = ", ".join(sorted(filter(None, kernels))) or "unknown"
    host = f"{document['processor']}, {document['cores']} cores, {document['cpus']} CPUs"
    return f"BERT-base by (batch, sequence length): {host}, kernel set {named}, {document['date']}"


if __name__ == "__main__":
    draw(*map(Path, sys.argv[1:3]))

"""Results of backends.py as a picture: `python benchmarks/backends_picture.py FILE.json FILE.svg`.

A bar is an engine's time for BERT-base over hfaccel's in the panel's precision: the median over the shapes,
with a line from the least to the most. Bars differ in grey, not in colour: the picture can be printed.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODEL = "bert-base"
NAMES = {
    "hfaccel": "hfaccel",
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "ctranslate2": "CTranslate2",
    "ipex": "IPEX",
    "torch.compile": "torch.compile",
    "eager": "transformers",
}
TITLES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
OURS, STOCK, OTHERS = "black", "0.75", "0.45"  # greys


class Bar(NamedTuple):
    """An engine's time over hfaccel's: the median over the shapes, the least and the most."""

    engine: str
    precision: str
    median: float
    least: float
    most: float

    def label(self, precision: str) -> str:
        """Its name, with its precision where the panel is of another one."""
        name = NAMES.get(self.engine, self.engine)
        return name if self.precision == precision else f"{name}, {TITLES[self.precision]}"


def bars(rows: Sequence[dict[str, Any]], precision: str) -> list[Bar]:
    """The engines that ran in this precision, the fastest first."""
    found = []
    for row in rows:
        if row["case"] == MODEL and row["precision"] == precision and "ratio" in row:
            engine, own = row["engine"].split()
            ratios = list(row["ratio"].values())
            found.append(Bar(engine, own, statistics.median(ratios), min(ratios), max(ratios)))
    return sorted(found, key=lambda bar: bar.median)


def draw(results: Path, picture: Path) -> None:
    """Write the picture of a file of results."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    document = json.loads(results.read_text())
    panels = {precision: bars(document["rows"], precision) for precision in TITLES}
    panels = {precision: shown for precision, shown in panels.items() if shown}
    heights = [len(shown) + 1 for shown in panels.values()]
    figure = Figure(figsize=(8, 0.26 * sum(heights) + 1.2), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    for axes, (precision, shown) in zip(grid, panels.items(), strict=True):
        _draw_panel(axes, shown, precision)
    grid[-1].set_xlabel(f"time over hfaccel's: shorter is faster\n{_host(document)}", fontsize=8)
    figure.suptitle(_title(document), fontsize=9)
    with rc_context({"svg.hashsalt": "hfaccel"}):  # the same results give the same file
        figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None, dpi=150)


def _draw_panel(axes: Axes, shown: Sequence[Bar], precision: str) -> None:
    places = range(len(shown))
    medians = [bar.median for bar in shown]
    spread = [[bar.median - bar.least for bar in shown], [bar.most - bar.median for bar in shown]]
    greys = [{"hfaccel": OURS, "eager": STOCK}.get(bar.engine, OTHERS) for bar in shown]
    axes.barh(places, medians, 0.7, color=greys, xerr=spread, error_kw={"linewidth": 0.8, "capsize": 2})
    for place, bar in zip(places, shown, strict=True):
        axes.annotate(f"{bar.median:.3g}", (bar.most, place), (5, -3), textcoords="offset points", fontsize=8)
    axes.margins(x=0.1)
    axes.set_yticks(places, [bar.label(precision) for bar in shown], fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(TITLES[precision], fontsize=9, loc="left")


def _title(document: dict[str, Any]) -> str:
    shapes = next(row["ratio"] for row in document["rows"] if row["case"] == MODEL and "ratio" in row)
    return f"One forward of BERT-base at (batch, sequence length) {', '.join(shapes)}: median, least and most"


def _host(document: dict[str, Any]) -> str:
    amx = " with AMX" if "amx_int8" in document["instructions"] else ""
    versions = f"torch {document['torch'].partition('+')[0]}, transformers {document['transformers']}"
    return f"{document['processor']}{amx}, {document['threads']} threads, {versions}, {document['date']}"


if __name__ == "__main__":
    draw(*map(Path, sys.argv[1:3]))

"""Figures as PNG, one file each, by matplotlib: the same marks at the same coordinates as in the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hfaccel.bench.report.drawing import Drawing, draw
from hfaccel.bench.report.drawing.legend import draw_swatch
from hfaccel.bench.report.drawing.marks import Box, Line, Mark, Marker, Text, cut, outline, width_of
from hfaccel.bench.report.figures import make_figures
from hfaccel.bench.report.model import Figure, legend
from hfaccel.bench.report.reading import Result
from hfaccel.bench.report.theme import LIGHT
from hfaccel.errors import HfaccelError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI, POINTS = 192, 0.75  # a unit is 1/96 of an inch: 0.75 points, two pixels
GAP = 24.0
ABREAST = 3  # panels in a row


def check_matplotlib() -> None:
    """Raise where pictures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise HfaccelError(
            f"pictures need matplotlib, but it cannot be imported ({error}); pip install 'hfaccel[plots]'"
        ) from None


def write_pictures(result: Result, folder: Path) -> list[Path]:
    """A file for each figure of the page. Returns their paths."""
    check_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(figure, folder / f"{figure.name}.png") for figure in make_figures(result)]


def _write(figure: Figure, path: Path) -> Path:
    from matplotlib.figure import Figure as Canvas

    whole = compose(figure)
    canvas = Canvas(figsize=(whole.width / 96, whole.height / 96), dpi=DPI, facecolor=LIGHT["surface"])
    axes = canvas.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, whole.width), ylim=(whole.height, 0))
    for order, mark in enumerate(whole.marks):
        _paint(axes, mark, order)
    canvas.savefig(path, metadata={"Software": None})
    return path


def compose(figure: Figure) -> Drawing:
    """Title, legend and panels of a figure as one drawing."""
    drawings = list(map(draw, figure.panels))
    rows = [drawings[at : at + ABREAST] for at in range(0, len(drawings), ABREAST)]
    width = max(sum(drawing.width + GAP for drawing in row) for row in rows) + GAP
    marks: list[Mark] = [Text(GAP, 30, cut(figure.title, width - 2 * GAP, 16), bold=True, size=16)]
    legends, y = _legend(figure, width)
    marks += legends
    for row in rows:
        for place, drawing in enumerate(row):
            marks += [_moved(mark, GAP + place * (drawing.width + GAP), y) for mark in drawing.marks]
        y += max(drawing.height for drawing in row) + GAP
    return Drawing(width, y, tuple(marks))


def _legend(figure: Figure, width: float) -> tuple[list[Mark], float]:
    """Swatches with their names, and where the panels begin."""
    marks: list[Mark] = []
    x, y = GAP, 44.0
    for name, look in legend(figure.panels).items():
        swatch = draw_swatch(look)
        room = swatch.width + 8 + width_of(name)
        if x > GAP and x + room > width - GAP:
            x, y = GAP, y + 20
        marks += [_moved(mark, x, y) for mark in swatch.marks]
        marks.append(Text(x + swatch.width + 6, y + 11, cut(name, width - 2 * GAP)))
        x += room + 18
    return marks, y + (34 if marks else 6)


def _moved(mark: Mark, x: float, y: float) -> Mark:
    from dataclasses import replace

    if isinstance(mark, Line):
        return replace(mark, points=tuple((left + x, top + y) for left, top in mark.points))
    return replace(mark, x=mark.x + x, y=mark.y + y)


# Painting


def _colour(name: str) -> str:
    return LIGHT[name] if name else "none"


def _dashes(dash: str, width: float) -> tuple[float, Sequence[float] | None]:
    return (0, [float(part) / width for part in dash.split()] or None)


def _paint(axes: Axes, mark: Mark, order: int) -> None:
    if isinstance(mark, Text):
        _paint_text(axes, mark, order)
    elif isinstance(mark, Line):
        x, y = zip(*mark.points, strict=True)
        style = _dashes(mark.dash, mark.width)
        axes.plot(x, y, color=_colour(mark.colour), lw=mark.width * POINTS, ls=style, zorder=order)
    elif isinstance(mark, Marker):
        _paint_marker(axes, mark, order)
    else:
        _paint_box(axes, mark, order)


def _paint_text(axes: Axes, text: Text, order: int) -> None:
    axes.text(
        text.x,
        text.y,
        text.text,
        color=_colour(text.colour),
        fontsize=text.size * POINTS * 0.92,  # matplotlib's letters are wider than those of most systems
        fontweight="bold" if text.bold else "normal",
        ha={"start": "left", "middle": "center", "end": "right"}[text.anchor],
        va="baseline",
        zorder=order,
        parse_math=False,  # names are no formulas
    )


def _paint_marker(axes: Axes, marker: Marker, order: int) -> None:
    from matplotlib.patches import Circle, Polygon

    corners = outline(marker)
    patch = Polygon(corners) if corners else Circle((marker.x, marker.y), marker.size)
    patch.set(
        facecolor=_colour("surface" if marker.hollow else marker.colour),
        edgecolor=_colour(marker.colour),
        linewidth=(1.6 if marker.hollow else 1.0) * POINTS,
        zorder=order,
    )
    axes.add_patch(patch)


def _paint_box(axes: Axes, box: Box, order: int) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    fill = to_rgba(_colour(box.fill), box.opacity) if box.fill else "none"
    patch = Rectangle((box.x, box.y), box.width, box.height, facecolor=fill, edgecolor=_colour(box.border))
    patch.set(linewidth=POINTS, linestyle=_dashes(box.dash, 1), zorder=order)
    axes.add_patch(patch)

"""A heat map of ratios: a tile for each row and column, the darker, the further from 1."""

from __future__ import annotations

import math

from hfaccel.bench.report.drawing.marks import Box, Drawing, Mark, Text, cut, width_of
from hfaccel.bench.report.model import Heat, Tile

WIDTH, LEFT, TOP, ROW = 340.0, 46.0, 42.0, 34.0
FULL = 8.0  # the ratio from which on a tile is as dark as one gets
DARKEST = 0.62  # text stays readable on it


def draw_heat(heat: Heat) -> Drawing:
    width = (WIDTH - LEFT) / len(heat.columns)
    bottom = TOP + ROW * len(heat.rows)
    marks: list[Mark] = [
        Text(2, 14, cut(heat.title, WIDTH - 4, 13), bold=True, size=13, tip=heat.title),
        Text(2, 31, heat.y, "muted"),
    ]
    for row, name in enumerate(heat.rows):
        marks.append(Text(LEFT - 6, TOP + ROW * (row + 0.5) + 4, cut(name, LEFT - 6, 11), "muted", "end", 11))
    for column, name in enumerate(heat.columns):
        if width_of(name, 11) <= width or column % 2 == 0:
            marks.append(Text(LEFT + width * (column + 0.5), bottom + 16, name, "muted", "middle", 11))
    for tile in heat.tiles:
        marks += _tile(tile, LEFT + width * tile.column, TOP + ROW * tile.row, width)
    marks.append(Text((LEFT + WIDTH) / 2, bottom + 34, heat.x, "muted", "middle"))
    return Drawing(WIDTH, bottom + 40, tuple(marks), describe(heat))


def _tile(tile: Tile, x: float, y: float, width: float) -> list[Mark]:
    flat = tile.value is None or tile.hollow
    fill = "" if flat else "faster" if (tile.value or 0) >= 1 else "slower"
    box = Box(
        x + 1,
        y + 1,
        width - 2,
        ROW - 2,
        fill,
        darkness(tile.value) if fill else 1.0,
        "muted" if flat else "",
        "3 2" if flat else "",
        tile.tip,
    )
    size = next((size for size in (12.0, 10.5, 9.0) if width_of(tile.text, size) <= width), 0.0)
    colour = "bad" if tile.value is None else "muted" if tile.hollow else "ink"
    middle = (x + width / 2, y + ROW / 2 + 4)
    return [box, *([Text(*middle, tile.text, colour, "middle", size, tip=tile.tip)] if size else [])]


def darkness(ratio: float | None) -> float:
    """The opacity of a tile: 1.0 and what is next to it is nearly the ground's colour."""
    if ratio is None or ratio <= 0:
        return DARKEST
    share = min(1.0, abs(math.log(ratio)) / math.log(FULL))
    return round(0.08 + (DARKEST - 0.08) * share, 3)


def describe(heat: Heat) -> str:
    """A heat map in words."""
    said = [
        f"{heat.y} {heat.rows[tile.row]} by {heat.x} {heat.columns[tile.column]}: {tile.text}"
        f"{', not significant' * tile.hollow}"
        for tile in heat.tiles
    ]
    return f"{heat.title}, times faster than the baseline. {'; '.join(said)}."

"""The swatch of a look: its line and its marker."""

from __future__ import annotations

from hfaccel.bench.report.drawing.marks import Drawing, Line, Mark, Marker
from hfaccel.bench.report.model import Look

WIDTH, HEIGHT = 34.0, 14.0


def draw_swatch(look: Look) -> Drawing:
    marks: list[Mark] = [Line(((1, HEIGHT / 2), (WIDTH - 1, HEIGHT / 2)), look.colour, 1.8, look.dash)]
    if look.marker:
        marks.append(Marker(WIDTH / 2, HEIGHT / 2, look.marker, look.colour))
    return Drawing(WIDTH, HEIGHT, tuple(marks))

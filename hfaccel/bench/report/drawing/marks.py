"""What a drawing consists of. Coordinates are in units of which text is 12 high; y goes down."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Place = tuple[float, float]


@dataclass(frozen=True)
class Line:
    points: tuple[Place, ...]
    colour: str  # a name of theme, as everywhere here
    width: float = 1.0
    dash: str = ""


@dataclass(frozen=True)
class Box:
    """A rectangle. Without a `fill` only its `border` is drawn."""

    x: float
    y: float
    width: float
    height: float
    fill: str = ""
    opacity: float = 1.0
    border: str = ""
    dash: str = ""
    tip: str = ""  # shown where the mouse rests


@dataclass(frozen=True)
class Marker:
    x: float
    y: float
    shape: str  # one of theme.MARKERS
    colour: str
    hollow: bool = False
    size: float = 4.0
    tip: str = ""


@dataclass(frozen=True)
class Text:
    x: float
    y: float  # of the line that letters stand on
    text: str
    colour: str = "ink"
    anchor: str = "start"  # start | middle | end
    size: float = 12.0
    bold: bool = False
    tip: str = ""


Mark = Line | Box | Marker | Text


@dataclass(frozen=True)
class Drawing:
    """One panel. `alt` says in words what is seen."""

    width: float
    height: float
    marks: tuple[Mark, ...]
    alt: str = field(default="", compare=False)


def outline(marker: Marker) -> tuple[Place, ...]:
    """The corners of a marker; () for a circle."""
    shape = _SHAPES[marker.shape]
    return tuple((marker.x + marker.size * x, marker.y + marker.size * y) for x, y in shape)


def _polygon(corners: int, turn: float = 0.0, inner: float = 1.0) -> tuple[Place, ...]:
    """Corners on a circle, the first at the top; every second one on an inner circle."""
    radii = [1.15 if number % 2 == 0 else 1.15 * inner for number in range(corners)]
    angles = [turn + 2 * math.pi * number / corners - math.pi / 2 for number in range(corners)]
    return tuple((r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True))


_SHAPES: dict[str, tuple[Place, ...]] = {
    "circle": (),
    "square": _polygon(4, math.pi / 4),
    "triangle": _polygon(3),
    "diamond": _polygon(4),
    "down": _polygon(3, math.pi),
    "cross": _polygon(8, inner=0.35),
    "star": _polygon(10, inner=0.45),
    "hexagon": _polygon(6),
    "left": _polygon(3, -math.pi / 2),
    "right": _polygon(3, math.pi / 2),
    "flat": ((-1.3, -0.45), (1.3, -0.45), (1.3, 0.45), (-1.3, 0.45)),
    "tall": ((-0.45, -1.3), (0.45, -1.3), (0.45, 1.3), (-0.45, 1.3)),
}


def cut(text: str, width: float, size: float = 12.0) -> str:
    """The text, or its beginning where the text is wider. Letters of a system's font are about 0.56 wide."""
    most = max(1, int(width / (0.56 * size)))
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def width_of(text: str, size: float = 12.0) -> float:
    return 0.58 * size * len(text)

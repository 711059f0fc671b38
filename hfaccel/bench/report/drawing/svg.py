"""A drawing as SVG. Colours are variables of CSS, so one picture serves the light, the dark and print."""

from __future__ import annotations

from hfaccel.bench.report.drawing.marks import Box, Drawing, Line, Mark, Marker, Text, outline
from hfaccel.bench.report.html import Markup, element

WEIGHTS = {True: "600", False: None}


def to_svg(drawing: Drawing, class_: str = "panel") -> Markup:
    """The drawing as an element with its description; without one it is decoration."""
    named = {"role": "img", "aria_label": drawing.alt} if drawing.alt else {"aria_hidden": "true"}
    size = f"0 0 {drawing.width:g} {drawing.height:g}"
    return element("svg", map(_mark, drawing.marks), viewBox=size, class_=class_, **named)


def _mark(mark: Mark) -> Markup:
    if isinstance(mark, Line):
        return _line(mark)
    if isinstance(mark, Box):
        return _box(mark)
    return _marker(mark) if isinstance(mark, Marker) else _text(mark)


def _colour(name: str) -> str:
    return f"var(--{name})" if name else "none"


def _tip(tip: str) -> list[Markup]:
    return [element("title", tip)] if tip else []


def _line(line: Line) -> Markup:
    steps = " L".join(f"{x:.1f} {y:.1f}" for x, y in line.points)
    return element(
        "path",
        d=f"M{steps}",
        fill="none",
        stroke=_colour(line.colour),
        stroke_width=line.width,
        stroke_dasharray=line.dash or None,
    )


def _box(box: Box) -> Markup:
    return element(
        "rect",
        *_tip(box.tip),
        x=f"{box.x:.1f}",
        y=f"{box.y:.1f}",
        width=f"{box.width:.1f}",
        height=f"{box.height:.1f}",
        fill=_colour(box.fill),
        fill_opacity=box.opacity if box.opacity != 1 else None,
        stroke=_colour(box.border) if box.border else None,
        stroke_dasharray=box.dash or None,
        pointer_events="all" if box.tip else None,
    )


def _marker(marker: Marker) -> Markup:
    paint: dict[str, str | float] = {
        "fill": "var(--surface)" if marker.hollow else _colour(marker.colour),
        "stroke": _colour(marker.colour),
        "stroke_width": 1.6 if marker.hollow else 1.0,
    }
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline(marker))
    if corners:
        return element("polygon", *_tip(marker.tip), points=corners, **paint)
    return element(
        "circle", *_tip(marker.tip), cx=f"{marker.x:.1f}", cy=f"{marker.y:.1f}", r=marker.size, **paint
    )


def _text(text: Text) -> Markup:
    return element(
        "text",
        *_tip(text.tip),
        text.text,
        x=f"{text.x:.1f}",
        y=f"{text.y:.1f}",
        fill=_colour(text.colour),
        font_size=text.size,
        font_weight=WEIGHTS[text.bold],
        text_anchor=text.anchor if text.anchor != "start" else None,
    )

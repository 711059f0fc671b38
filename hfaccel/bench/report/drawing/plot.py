"""A plot: marks and lines over two axes."""

from __future__ import annotations

from collections.abc import Sequence

from hfaccel.bench.report.drawing.marks import Drawing, Line, Mark, Marker, Text, cut, width_of
from hfaccel.bench.report.drawing.scales import Scale, apart, fitting, ticks
from hfaccel.bench.report.model import Axis, Plot, Point, Series
from hfaccel.bench.report.wording import counted, plain, short

WIDTH, HEIGHT = 340.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 42.0, 40.0


def draw_plot(plot: Plot) -> Drawing:
    points = [point for series in plot.series for point in series.points]
    highs = [point.high for point in points if point.high is not None]
    x = _scale(plot.x, [point.x for point in points], LEFT, WIDTH - RIGHT)
    y = _scale(plot.y, [*(point.y for point in points), *highs], HEIGHT - BOTTOM, TOP)
    marks: list[Mark] = [*_x_axis(plot.x, x), *_y_axis(plot.y, y)]
    for series in plot.series:
        marks += [*_line(series, x, y), *_whiskers(series, x, y)]
    for series in plot.series:  # above all lines
        marks += _markers(series, x, y)
    title = Text(2, 14, cut(plot.title, WIDTH - 4, 13), bold=True, size=13, tip=plot.title)
    return Drawing(WIDTH, HEIGHT, (title, *marks), describe(plot))


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> Scale:
    return fitting([*values, *axis.ticks], start, end, axis.log, axis.from_zero)


def _x_axis(axis: Axis, scale: Scale) -> list[Mark]:
    bottom = HEIGHT - BOTTOM
    values = [value for value in axis.ticks or ticks(scale) if scale.low <= value <= scale.high]
    texts = [plain(value) for value in values]
    places = [(scale(value), width_of(text, 11)) for value, text in zip(values, texts, strict=True)]
    marks: list[Mark] = [Line(((LEFT, bottom), (WIDTH - RIGHT, bottom)), "muted")]
    for number in apart(places):
        at = places[number][0]
        marks.append(Line(((at, bottom), (at, bottom + 4)), "muted"))
        marks.append(Text(at, bottom + 16, texts[number], "muted", "middle", 11))
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*marks, Text(middle, HEIGHT - 6, cut(axis.label, WIDTH - LEFT), "muted", "middle")]


def _y_axis(axis: Axis, scale: Scale) -> list[Mark]:
    marks: list[Mark] = []
    for value in ticks(scale):
        at = scale(value)
        marks.append(Line(((LEFT, at), (WIDTH - RIGHT, at)), "grid"))
        marks.append(Text(LEFT - 6, at + 4, plain(value), "muted", "end", 11))
    return [*marks, Text(2, 31, cut(axis.label, WIDTH - 4), "muted")]


def _line(series: Series, x: Scale, y: Scale) -> list[Mark]:
    if not series.joined or len(series.points) < 2:
        return []
    places = tuple((x(point.x), y(point.y)) for point in series.points)
    return [Line(places, series.look.colour, 1.8, series.look.dash)]


def _whiskers(series: Series, x: Scale, y: Scale) -> list[Mark]:
    return [
        Line(((x(point.x), y(point.y)), (x(point.x), y(point.high))), series.look.colour)
        for point in series.points
        if point.high is not None and point.high > point.y
    ]


def _markers(series: Series, x: Scale, y: Scale) -> list[Mark]:
    if not series.look.marker:
        return []

    def marker(point: Point) -> Marker:
        look = series.look
        return Marker(x(point.x), y(point.y), look.marker, look.colour, point.hollow, tip=point.tip)

    return list(map(marker, series.points))


def describe(plot: Plot) -> str:
    """A plot in words: each series from its first to its last point."""
    said = [f"{plot.title}: {plot.y.label} by {plot.x.label}."]
    for series in plot.series:
        first, last = series.points[0], series.points[-1]
        if series.joined:
            words = f"{short(first.y)} at {short(first.x)}"
            words += f" to {short(last.y)} at {short(last.x)}" if first != last else ""
        else:
            values = [point.y for point in series.points]
            words = f"{counted(len(values), 'mark')} from {short(min(values))} to {short(max(values))}"
        said.append(f"{series.name}: {words}.")
    return " ".join(said)

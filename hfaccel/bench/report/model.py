"""What a figure consists of: panels with the numbers that are drawn in them."""

from __future__ import annotations

from dataclasses import dataclass

from hfaccel.bench.report.wording import counted

MOST_PANELS = 12  # of a figure; the tables hold what the others would show


@dataclass(frozen=True)
class Look:
    """How one thing is told from another: by colour, by dashes and by the shape of its markers."""

    colour: str  # a name of theme
    dash: str = ""
    marker: str = ""  # none: a line alone


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    high: float | None = None  # the end of a line upwards, for p90
    hollow: bool = False
    tip: str = ""


@dataclass(frozen=True)
class Series:
    name: str
    look: Look
    points: tuple[Point, ...]
    joined: bool = True


@dataclass(frozen=True)
class Axis:
    label: str
    log: bool = False
    from_zero: bool = False
    ticks: tuple[float, ...] = ()  # none: round numbers


@dataclass(frozen=True)
class Plot:
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Tile:
    """A place of a heat map. Without a value, `text` says why."""

    row: int
    column: int
    value: float | None
    text: str
    hollow: bool = False
    tip: str = ""


@dataclass(frozen=True)
class Heat:
    title: str
    x: str
    y: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Bar:
    """A number as a length from zero. Without a value, `text` says why."""

    name: str
    value: float | None
    text: str
    high: float | None = None
    hollow: bool = False
    colour: str = "s0"
    tip: str = ""


@dataclass(frozen=True)
class Bars:
    title: str
    label: str
    bars: tuple[Bar, ...]


Panel = Plot | Heat | Bars


@dataclass(frozen=True)
class Figure:
    """A picture of one or more panels. `reading` tells how it is read, `notes` what is to be known."""

    name: str
    title: str
    reading: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()


def legend(panels: tuple[Panel, ...]) -> dict[str, Look]:
    """The looks in these panels, by name, each once."""
    plots = [panel for panel in panels if isinstance(panel, Plot)]
    return {series.name: series.look for plot in plots for series in plot.series}


def make_figure(
    name: str, title: str, reading: str, panels: list[Plot] | list[Heat] | list[Bars], notes: list[str]
) -> Figure | None:
    """A figure of the first panels; None without any."""
    if not panels:
        return None
    left_out = len(panels) - MOST_PANELS
    count = counted(left_out, "more panel is", "more panels are")
    more = [f"{count} not drawn: their numbers are in the tables."] if left_out > 0 else []
    return Figure(name, title, reading, tuple(panels[:MOST_PANELS]), tuple([*notes, *more]))

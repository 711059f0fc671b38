"""Figures of a result: which numbers are drawn, and how they are read. Pure; nothing here knows about pages.

A figure is a row of FIGURES: a function that takes a result and returns its figure, or None where the result
has no data for one.
"""

from __future__ import annotations

from collections.abc import Callable

from hfaccel.bench.report.figures import choices, latency, other, padding, roofline, scaling, speedup, tuning
from hfaccel.bench.report.model import Figure
from hfaccel.bench.report.reading import Result

FIGURES: tuple[Callable[[Result], Figure | None], ...] = (
    tuning.history,
    tuning.importances,
    speedup.speedup,
    latency.by_length,
    latency.by_cores,
    other.generation,
    other.programs,
    padding.padding,
    scaling.instances,
    choices.allocators,
    choices.openmp,
    choices.huge_pages,
    roofline.roofline,
)


def make_figures(result: Result) -> list[Figure]:
    """The figures that this result has data for, in the order of the page."""
    return [figure for make in FIGURES if (figure := make(result)) is not None]

"""From a panel of a figure to its drawing."""

from __future__ import annotations

from hfaccel.bench.report.drawing.bars import draw_bars
from hfaccel.bench.report.drawing.heat import draw_heat
from hfaccel.bench.report.drawing.marks import Drawing
from hfaccel.bench.report.drawing.plot import draw_plot
from hfaccel.bench.report.model import Bars, Heat, Panel


def draw(panel: Panel) -> Drawing:
    if isinstance(panel, Heat):
        return draw_heat(panel)
    return draw_bars(panel) if isinstance(panel, Bars) else draw_plot(panel)

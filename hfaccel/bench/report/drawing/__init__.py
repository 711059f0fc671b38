"""Drawings: a figure's panels as marks at coordinates, which `svg` and `png` write in their own ways."""

from hfaccel.bench.report.drawing.marks import Drawing
from hfaccel.bench.report.drawing.panels import draw

__all__ = ["Drawing", "draw"]

"""The engine: how a model's own layers are computed faster, in place, with equal results."""

from hfaccel.engine.kernels import Kind, kernels_problem
from hfaccel.engine.transform import Precision, restore, stock_calls, transform

__all__ = ["Kind", "Precision", "kernels_problem", "restore", "stock_calls", "transform"]

"""The engine: how a model's own layers are computed faster, in place, with equal results."""

from hfaccel.engine.counting import stock_calls
from hfaccel.engine.form import Form, form, form_problem, reform
from hfaccel.engine.kernels import Kind, kernels_problem
from hfaccel.engine.linear import is_linear
from hfaccel.engine.packed import PackedWeight, TransposedWeight
from hfaccel.engine.transform import Precision, restore, transform

__all__ = [
    "Form",
    "Kind",
    "PackedWeight",
    "Precision",
    "TransposedWeight",
    "form",
    "form_problem",
    "is_linear",
    "kernels_problem",
    "reform",
    "restore",
    "stock_calls",
    "transform",
]

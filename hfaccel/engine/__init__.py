"""The engine: how a model's own layers are computed faster, in place, with equal results."""

from hfaccel.engine.counting import padded_calls, stock_calls
from hfaccel.engine.form import Form, form, form_problem, reform
from hfaccel.engine.kernels import Kind, kernels_problem, multiplies, panel, set_in_use
from hfaccel.engine.linear import is_linear
from hfaccel.engine.packed import PackedWeight, TransposedWeight
from hfaccel.engine.settings import plain_settings
from hfaccel.engine.transform import Precision, restore, transform
from hfaccel.engine.widening import widening_gain, widening_problem

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
    "multiplies",
    "padded_calls",
    "panel",
    "plain_settings",
    "reform",
    "restore",
    "set_in_use",
    "stock_calls",
    "transform",
    "widening_gain",
    "widening_problem",
]

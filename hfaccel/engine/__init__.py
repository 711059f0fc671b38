"""The engine: it computes a model's own layers faster, in place, with equal results."""

from hfaccel.engine.calibration.widening import widening_gain, widening_problem
from hfaccel.engine.calls.settings import plain_settings
from hfaccel.engine.counting import padded_calls, stock_calls
from hfaccel.engine.experts.selection import holders
from hfaccel.engine.kernels import Kind, kernels_problem, multiplies, panel, set_in_use
from hfaccel.engine.plan import ModelPlan, Step, plan_of, plan_problem
from hfaccel.engine.transform import apply_plan, inspect, restore, transform
from hfaccel.engine.weights.checkpoints import is_quantized
from hfaccel.engine.weights.checkpoints.conversion import checkpoint_problem, keeps_linears
from hfaccel.engine.weights.linear import is_linear
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.engine.weights.stacked import FORMS

__all__ = [
    "FORMS",
    "Kind",
    "ModelPlan",
    "PackedWeight",
    "Step",
    "apply_plan",
    "checkpoint_problem",
    "holders",
    "inspect",
    "is_linear",
    "is_quantized",
    "keeps_linears",
    "kernels_problem",
    "multiplies",
    "padded_calls",
    "panel",
    "plain_settings",
    "plan_of",
    "plan_problem",
    "restore",
    "set_in_use",
    "stock_calls",
    "transform",
    "widening_gain",
    "widening_problem",
]

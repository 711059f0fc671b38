"""What the experts of a layer compute: which parameters they have, and how gate and up become one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hfaccel.engine.kernels import ACTIVATIONS, Activation, kernels_problem
from hfaccel.engine.weights.linear import weight_problem
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.engine.weights.stacked import StackedWeight, stack_class
from hfaccel.upstream import Need, problem
from hfaccel.upstream.of_experts import has_form, is_elsewhere

UP, GATE_UP, DOWN = "up_proj", "gate_up_proj", "down_proj"


@dataclass(frozen=True)
class Form:
    """The parameters of a layer's experts."""

    gated: bool
    alternate: bool  # rows of gate and of up in turn
    transposed: bool  # (experts, in_features, out_features)
    biased: bool

    @property
    def up(self) -> str:
        """The name of the first weight."""
        return GATE_UP if self.gated else UP

    @property
    def biases(self) -> tuple[str, ...]:
        return (f"{self.up}_bias", f"{DOWN}_bias") if self.biased else ()

    @property
    def weights(self) -> Mapping[str, type[StackedWeight]]:
        """Name -> the class of the packed weight."""
        halves = 2 if self.gated else 1
        return {
            self.up: stack_class(halves=halves, alternate=self.alternate, transposed=self.transposed),
            DOWN: stack_class(halves=1, alternate=False, transposed=self.transposed),
        }


def form_of(module: Any) -> Form:
    """The form of a layer's experts (`is_experts`)."""
    return Form(module.has_gate, not module.is_concatenated, module.is_transposed, module.has_bias)


@dataclass(frozen=True)
class Formula:
    """activation(gate) * up; or, with a limit, gate * sigmoid(slope * gate) * (up + shift), where gate and up
    are at most `limit` and up is at least `-limit`."""

    activation: Activation = Activation.SILU
    limit: float = 0.0
    slope: float = 1.0
    shift: float = 0.0


def _plain(module: Any) -> Formula | None:
    activation = ACTIVATIONS.get(type(getattr(module, "act_fn", None)).__name__)
    return None if activation is None else Formula(activation)


def _attribute(module: Any, *names: str) -> float | None:
    """The first of these attributes that is a number."""
    values = (getattr(module, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float)), None)


def _limited(module: Any) -> Formula | None:
    limit = _attribute(module, "swiglu_limit", "limit")
    return Formula(limit=limit) if limit is not None and 0 < limit < math.inf else None


def _shifted(module: Any) -> Formula | None:
    limited, slope = _limited(module), _attribute(module, "swiglu_alpha", "alpha")
    return None if limited is None or slope is None else Formula(limit=limited.limit, slope=slope, shift=1.0)


# What is tried, by the name that a plan gives it: the formula with a module's own numbers; None for a module
# that has none of these.
FORMULAS: dict[str, Callable[[nn.Module], Formula | None]] = {
    "activation": _plain,
    "limited": _limited,
    "limited and shifted": _shifted,
}


def is_experts(module: nn.Module) -> bool:
    """Whether this is the experts of a layer, in the form that transformers gives them."""
    return not problem(Need.EXPERTS) and has_form(module) and DOWN in module._parameters


def experts_problem(module: Any) -> str:
    """Why these experts are not packed; "" where they are."""
    form = form_of(module)
    values = {name: module._parameters.get(name) for name in (*form.weights, *form.biases)}
    missing = ", ".join(name for name, value in values.items() if value is None)
    if missing:
        return f"they have no {missing}"
    if getattr(module, "has_post_expert_norm", False):
        return "a norm follows each expert"
    if is_elsewhere(module):
        return "other processes have some of them"
    weights = [values[name] for name in form.weights]
    if any(weight.dim() != 3 for weight in weights):
        return "their weights do not have three dimensions"
    problems = (weight_problem(each) for each in weights if not isinstance(each, PackedWeight))
    return next(filter(None, problems), "") or kernels_problem()

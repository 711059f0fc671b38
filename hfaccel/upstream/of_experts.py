"""How transformers keeps the experts of a layer: one module, weights with three dimensions, and a table of
functions that compute it."""

from __future__ import annotations

from typing import Any

from torch import nn

from hfaccel.upstream.of_transformers import of_models
from hfaccel.upstream.probe import Need

MODULE = "transformers.integrations.moe"
CHOICE = "_experts_implementation"  # how a config names the function
OWN = "eager"  # the name of the forward that the module's class has
PARALLEL = "_is_expert_parallel"  # whether other processes have some of the experts
GATE = "_apply_gate"  # a method of experts, by which those functions make one of gate and up


def _marks(decorate: Any) -> bool:
    class Experts(nn.Module):
        def __init__(self, config: object) -> None:
            super().__init__()

        def forward(self, hidden: object) -> object:
            return hidden

    marked = decorate(Experts)(object())
    plain = (marked.has_gate, marked.has_bias, marked.is_transposed, marked.is_concatenated)
    is_plain = plain == (True, False, False, True) and getattr(marked, PARALLEL) is False
    return is_plain and callable(getattr(marked, GATE))


FORM = of_models(
    MODULE, "use_experts_implementation", "what form a layer's experts have", (Need.EXPERTS,), _marks
)
FUNCTIONS = of_models(
    MODULE,
    "ALL_EXPERTS_FUNCTIONS",
    "the table of functions that compute experts",
    (Need.EXPERTS,),
    lambda found: callable(found["batched_mm"]) and callable(found["grouped_mm"]),
)


def chosen_function(experts: Any) -> object:
    """The function that computes this module; None for the forward of its class."""
    name = getattr(experts.config, CHOICE, None)
    return None if name in (None, OWN) else FUNCTIONS.value()[name]


def is_elsewhere(experts: nn.Module) -> bool:
    """Whether other processes have some of the experts."""
    return bool(getattr(experts, PARALLEL))


def has_form(module: nn.Module) -> bool:
    """Whether the module is a layer's experts."""
    return hasattr(module, PARALLEL) and hasattr(module, GATE)

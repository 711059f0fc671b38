"""Which layers of a model are fused, and the report's lines about the others."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers.embeddings import embeddings_of
from hfaccel.engine.layers.families import Family, family_of
from hfaccel.engine.layers.layer import FusedLayer, unpads
from hfaccel.engine.layers.stack import is_decoder, lists_of_layers
from hfaccel.engine.layers.trial import Trials, match
from hfaccel.engine.plan import Step
from hfaccel.engine.replacements import Settings
from hfaccel.outcome import Outcome

Layers = list[tuple[nn.Module, Family]]


def find_layers(model: nn.Module, unpad: bool | str, kv_cache: str = "") -> tuple[list[Step], list[Outcome]]:
    """Steps for the layers that agreed with a fused copy of themselves, and why others are left alone.
    `unpad`: whether padding is left out."""
    steps: list[Step] = []
    left: list[Outcome] = []
    trials = Trials()
    for path, layer in model.named_modules():
        verdict = None if isinstance(layer, FusedLayer) else match(layer, trials)
        if verdict is None:
            continue
        family, problem = verdict
        if family is None:
            left.append(Outcome(type(layer).__name__, False, f"not fused: {problem}"))
        else:
            kept = {"kv_cache": kv_cache} if kv_cache and family.call.follows else {}
            settings: Settings = {"family": family.name, "unpad": unpads(family, unpad), "slower": [], **kept}
            steps.append(Step(path, "layer", settings, f"{family.name} layer"))
    return steps, left


def layers_of(model: nn.Module, steps: Iterable[Step]) -> Layers:
    return [(model.get_submodule(step.path), family_of(step.settings["family"])) for step in steps]


def find_embeddings(model: nn.Module) -> tuple[list[Step], list[Outcome]]:
    """Steps for modules that look up embeddings and apply a norm, and why others are left alone. Models
    themselves are excluded, because checkpoints contain the names of their classes."""
    steps: list[Step] = []
    left: list[Outcome] = []
    for path, module, problem in embeddings_of(model) if not kernels_problem() else ():
        subject = type(module).__name__
        if problem:
            left.append(Outcome(subject, False, f"not fused: {problem}"))
        else:
            steps.append(Step(path, "embeddings", {}, subject, "embeddings and their norm in one pass"))
    return steps, left


def find_stacks(model: nn.Module) -> tuple[list[Step], list[Outcome]]:
    """Steps for modules that run all their fused layers in one call, and why others do not."""
    steps: list[Step] = []
    left: list[Outcome] = []
    for path, module, name, problem in lists_of_layers(model):
        subject = type(module).__name__
        if problem:
            left.append(Outcome(subject, False, f"its layers run one by one ({problem})"))
        else:
            replacement = "decoder" if is_decoder(module, name) else "stack"
            steps.append(Step(path, replacement, {"layers": name}, subject, "its layers run in one call"))
    return steps, left

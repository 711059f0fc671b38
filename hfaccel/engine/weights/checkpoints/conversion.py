"""Puts ordinary linear layers with packed weights in the place of those that a checkpoint has quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hfaccel.engine.calls.guards import COMPUTED
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.weights.checkpoints import (
    Format,
    Unreadable,
    format_of,
    is_expanded_later,
    is_quantized,
)
from hfaccel.engine.weights.checkpoints.expanded import was_expanded
from hfaccel.engine.weights.checkpoints.integers import Integers, Rows
from hfaccel.engine.weights.linear import PackedModule
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.engine.weights.repacking import ARENA, arena_for_one
from hfaccel.memory import Arena, padded
from hfaccel.outcome import Outcome
from hfaccel.upstream.of_quantizers import forget_quantizer

SUBJECT = "quantized linear layer"


@dataclass
class Converted:
    """What became of the quantized layers of a model."""

    weights: set[torch.Tensor] = field(default_factory=set)  # packed now
    shares: bool = True  # whether models that have other parts in common with this one may see them packed
    expanded: bool = False  # whether its weights were expanded to floats as it was loaded
    outcomes: list[Outcome] = field(default_factory=list)


def convert(model: nn.Module, huge_pages: bool) -> Converted:
    """Replace the quantized linear layers of the model, one after another: besides the model, memory holds
    one of them unpacked. The modules that were there stay as they are, for other models that have them."""
    found = {module: each for module in model.modules() if (each := format_of(module)) is not None}
    expanded = not found and was_expanded(model)
    converted = Converted(shares=not keeps_linears(model), expanded=expanded)
    if not found:
        return converted
    dtype = _computed_in(model, found)
    if problem := kernels_problem() or _dtype_problem(dtype):
        converted.outcomes.append(Outcome(SUBJECT, False, f"left as it is: {problem}"))
        return converted
    made: Counter[str] = Counter()
    left: Counter[str] = Counter()
    places = _places(model, found)
    while found:  # nothing here may keep a module that the model has lost
        module, each = found.popitem()
        parents = places.pop(module)
        linear, problem = _made(module, each, dtype, huge_pages)
        if linear is None:
            left[f"{each.name}: {problem}"] += 1
            continue
        weight: Any = linear.weight
        converted.weights.add(weight)
        made[f"{each.name}: computed from its own numbers, in {weight.kind.label}"] += 1
        for parent, name in parents:
            setattr(parent, name, linear)
    converted.outcomes += [Outcome(SUBJECT, True, f"{reason} ({count})") for reason, count in made.items()]
    converted.outcomes += [Outcome(SUBJECT, False, f"{reason} ({count})") for reason, count in left.items()]
    if not left:
        forget_quantizer(model)
    return converted


def keeps_linears(model: nn.Module) -> bool:
    """Whether the model must share no linear layer with the result of its optimization: because its quantizer
    is going to replace weights, or because the result is computed from other numbers."""
    return is_expanded_later(model) or (not is_quantized(model) and was_expanded(model))


def checkpoint_problem(model: nn.Module) -> str:
    """Why nothing in the model may be changed, because its quantizer expands weights that the kernels cannot
    read, at the first call of the model; "" for any other model."""
    found = {module: each for module in model.modules() if (each := format_of(module)) is not None}
    whole = {module: each for module, each in found.items() if each.otherwise}
    if not whole:
        return ""
    problem = kernels_problem() or _dtype_problem(_computed_in(model, found))
    problems = (_module_problem(module) or _unreadable(module, each) for module, each in whole.items())
    problem = problem or next(filter(None, problems), "")
    each = next(iter(whole.values()))
    return (
        f"a layer that {each.name} has quantized cannot be computed: {problem}; {each.otherwise}"
        if problem
        else ""
    )


def _unreadable(module: nn.Module, each: Format) -> str:
    numbers = _read(module, each)
    return numbers if isinstance(numbers, str) else ""


def _read(module: nn.Module, each: Format) -> Integers | Rows | str:
    """What the module's format reads; or why that cannot be read."""
    try:
        with torch.no_grad():
            return each.read(module)
    except Unreadable as error:
        return str(error)
    except (AttributeError, TypeError) as error:  # of another version of the quantizer's package
        return f"this version of {each.name} is not known ({error})"


def _made(module: Any, each: Format, dtype: torch.dtype, huge_pages: bool) -> tuple[nn.Linear | None, str]:
    """The layer that takes the module's place; or None and why there is none."""
    if problem := _module_problem(module):
        return None, problem
    numbers = _read(module, each)
    if isinstance(numbers, str):
        return None, numbers
    rows, columns = numbers.numbers.shape
    with torch.inference_mode(False):
        layout = PackedWeight.layout_of(numbers.kind, (rows, columns))
        memory = _room(layout.nbytes, huge_pages)
        numbers.write(layout, memory)
        linear = nn.Linear(columns, rows, bias=False, device="meta", dtype=dtype)
        linear.weight = PackedWeight(memory, numbers.kind, (rows, columns), dtype, False)
        bias = getattr(module, "bias", None)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().to(dtype, copy=True), False)
    linear.train(False)
    PackedModule.hfaccel_apply(linear, {}, linear.get_submodule)
    return linear, ""


def _module_problem(module: nn.Module) -> str:
    if module.training:
        return "it is in training mode"
    if any(True for _ in module.children()):
        return "it has parts of its own, which its replacement would not have"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks, which its replacement would not call"
    if any(not tensor.is_cpu for tensor in (*module.parameters(False), *module.buffers(False))):
        return "it is not on the CPU"
    return ""


def _computed_in(model: nn.Module, found: Mapping[nn.Module, Format]) -> torch.dtype:
    """The type of most numbers outside of quantized layers: what goes from layer to layer."""
    sizes: Counter[torch.dtype] = Counter()
    for module in model.modules():
        for tensor in () if module in found else module.parameters(recurse=False):
            if tensor.is_floating_point():
                sizes[tensor.dtype] += tensor.numel()
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def _dtype_problem(dtype: torch.dtype) -> str:
    if dtype in COMPUTED:
        return ""
    name = str(dtype).removeprefix("torch.")
    return (
        f"the model computes in {name}, and the kernels in float32 and bfloat16; load it with "
        "from_pretrained(..., dtype=torch.float32) or torch.bfloat16"
    )


def _places(
    model: nn.Module, found: Mapping[nn.Module, Format]
) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Where in the model each quantized layer is: parents and names."""
    places: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None and child in found:
                places.setdefault(child, []).append((parent, name))
    return places


def _room(nbytes: int, huge_pages: bool) -> torch.Tensor:
    arena = arena_for_one(padded(nbytes)) if huge_pages else Arena(nbytes, pages="default")
    memory = arena.take((nbytes,), torch.uint8)
    setattr(memory, ARENA, arena)
    return memory

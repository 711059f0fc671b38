"""The convolutions of a model: which are prepared, in what, and what the report says of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from hfaccel.engine.convolution import (
    PreparedConvolution,
    alone_problem,
    convolution_problem,
    prepare,
    unprepare,
)
from hfaccel.engine.kernels import Kind
from hfaccel.engine.prepared import WRONG_ON_AMX, is_norm, kind_of
from hfaccel.engine.region import Derived
from hfaccel.engine.regions import Found, convolutions, enter, find_regions
from hfaccel.outcome import Outcome

Wanted = Callable[[torch.Tensor], Kind]  # weight -> the kind asked for


@dataclass
class Convolutions:
    """What was found, before anything is changed."""

    regions: list[Found] = field(default_factory=list)
    alone: list[_ConvNd] = field(default_factory=list)
    left: list[Outcome] = field(default_factory=list)


def select_convolutions(model: nn.Module, fused: Iterable[nn.Module]) -> Convolutions:
    """Those worth preparing outside of `fused` layers. The model must be in ordinary numbers still: trials
    compare float32."""
    reasons: dict[nn.Module, str] = {}
    inside = {id(part) for layer in fused for part in layer.modules()}
    selected = Convolutions(list(find_regions(model, inside, reasons)))
    seen = {id(part) for found in selected.regions for part in found.module.modules()} | inside
    for module in model.modules():
        if id(module) in seen:
            continue
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            problem = convolution_problem(module) or alone_problem(module)
            if problem:
                selected.left.append(Outcome("convolution", False, f"not packed: {problem}"))
            else:
                selected.alone.append(module)
    selected.left += _norms_left(model, seen, reasons)
    return selected


def _norms_left(model: nn.Module, seen: set[int], reasons: dict[nn.Module, str]) -> Iterator[Outcome]:
    """Batch norms outside of every region that have a convolution beside them."""
    for parent in model.modules():
        children = [each for each in parent.children() if id(each) not in seen]
        beside = any(isinstance(each, nn.Conv1d | nn.Conv2d) for each in children)
        reason = (
            reasons.get(parent, "its convolution is not packed") if beside else "no convolution is beside it"
        )
        yield from [Outcome("batch norm", False, f"not folded: {reason}")] * sum(map(is_norm, children))


def prepare_convolutions(selected: Convolutions, wanted: Wanted) -> list[Outcome]:
    """Make the change, in place: classes and a few private attributes, no parameter."""
    outcomes = list(selected.left)
    for module in selected.alone:
        prepare(module, wanted(module.weight))
        outcomes.append(_of_convolution(module, ", where its weight is larger than the image"))
    for found in selected.regions:
        enter(found.module, found.followers, wanted)
        outcomes.append(Outcome(type(found.module).__name__, True, "runs channels last"))
        outcomes += _of_region(found)
    return outcomes


def _of_region(found: Found) -> Iterator[Outcome]:
    folded = [found.module.get_submodule(path) for chain in found.followers.values() for path in chain]
    for path in convolutions(found.module):
        yield _of_convolution(found.module.get_submodule(path))
    for module in folded:
        if is_norm(module):
            yield Outcome("batch norm", True, "folded into the convolution before it")
        else:
            yield Outcome("activation", True, "computed by the convolution before it")
    for module in found.module.modules():
        if is_norm(module) and not any(module is each for each in folded):
            yield Outcome("batch norm", False, "not folded: no convolution comes right before it")


def _of_convolution(module: nn.Module, condition: str = "") -> Outcome:
    assert isinstance(module, PreparedConvolution)
    kind, matrix = kind_of(module, module.wanted)
    reason = f"packed in {kind.label}" + (" as a matrix" if matrix else "")
    if module.wanted is Kind.INT8 and not matrix:
        reason += "; int8 is for those that are the product of a matrix"
    if module.wanted is Kind.BFLOAT16 and kind is Kind.FLOAT32:
        reason += f"; {WRONG_ON_AMX}"
    return Outcome("convolution", True, reason + (condition if kind is Kind.FLOAT32 else ""))


def restore_convolutions(model: nn.Module) -> None:
    """The former classes; parameters never changed."""
    for module in list(model.modules()):
        if isinstance(module, PreparedConvolution):
            unprepare(module)
        elif isinstance(module, Derived):
            module.underive()

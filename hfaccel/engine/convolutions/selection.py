"""Which convolutions of a model are prepared, in which kind, and what a report says about each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from hfaccel.engine.convolutions.convolution import alone_problem, convolution_problem
from hfaccel.engine.convolutions.prepared import WRONG_ON_AMX, is_norm, kind_of
from hfaccel.engine.convolutions.regions import Found, convolutions, find_regions
from hfaccel.engine.kernels import Kind
from hfaccel.engine.plan import Step
from hfaccel.outcome import Outcome
from hfaccel.upstream.of_torch import _ConvNd

Wanted = Callable[[torch.Tensor], Kind]  # weight -> the kind asked for


def find_convolutions(
    model: nn.Module, fused: Iterable[nn.Module], wanted: Wanted
) -> tuple[list[Step], list[Outcome]]:
    """Steps for the convolutions outside of `fused` layers that are worth preparing, and the report's lines
    about the others. No weight may be packed yet, because trials compare results in float32."""
    reasons: dict[nn.Module, str] = {}
    paths = {module: path for path, module in model.named_modules()}
    inside = {part for layer in fused for part in layer.modules()}
    regions = list(find_regions(model, inside, reasons))
    seen = {part for found in regions for part in found.module.modules()} | inside
    steps: list[Step] = []
    notes: list[Outcome] = []
    for module, path in paths.items():
        if module not in seen and isinstance(module, nn.Conv1d | nn.Conv2d):
            problem = convolution_problem(module) or alone_problem(module)
            if problem:
                notes.append(Outcome("convolution", False, f"not packed: {problem}"))
            else:
                steps.append(_step(module, path, wanted, (), ", where its weight is larger than the image"))
    notes += _norms_left(model, seen, reasons)
    for found in regions:
        steps += _of_region(found, paths, wanted)
        notes += _folded(found)
    return steps, notes


def _norms_left(model: nn.Module, seen: set[nn.Module], reasons: dict[nn.Module, str]) -> Iterator[Outcome]:
    """The report's lines about batch norms outside of every region."""
    for parent in model.modules():
        children = [each for each in parent.children() if each not in seen]
        beside = any(isinstance(each, nn.Conv1d | nn.Conv2d) for each in children)
        reason = (
            reasons.get(parent, "its convolution is not packed") if beside else "no convolution is beside it"
        )
        yield from [Outcome("batch norm", False, f"not folded: {reason}")] * sum(map(is_norm, children))


def _of_region(found: Found, paths: dict[nn.Module, str], wanted: Wanted) -> Iterator[Step]:
    for path, module in convolutions(found.module).items():
        followers = [paths[found.module.get_submodule(each)] for each in found.followers.get(path, ())]
        yield _step(module, paths[module], wanted, followers)
    yield Step(paths[found.module], "region", {}, type(found.module).__name__, "runs channels last")


def _folded(found: Found) -> Iterator[Outcome]:
    folded = [found.module.get_submodule(path) for chain in found.followers.values() for path in chain]
    for module in folded:
        if is_norm(module):
            yield Outcome("batch norm", True, "folded into the convolution before it")
        else:
            yield Outcome("activation", True, "computed by the convolution before it")
    for module in found.module.modules():
        if is_norm(module) and module not in folded:
            yield Outcome("batch norm", False, "not folded: no convolution comes right before it")


def _step(module: _ConvNd, path: str, wanted: Wanted, followers: Iterable[str], condition: str = "") -> Step:
    asked = wanted(module.weight)
    kind, matrix = kind_of(module, asked)
    reason = f"packed in {kind.label}" + (" as a matrix" if matrix else "")
    if asked is Kind.INT8 and not matrix:
        reason += "; int8 is used only for convolutions that are computed as a matrix product"
    if asked is Kind.BFLOAT16 and kind is Kind.FLOAT32:
        reason += f"; {WRONG_ON_AMX}"
    reason += condition if kind is Kind.FLOAT32 else ""
    return Step(path, "convolution", {"kind": asked.label, "followers": [*followers]}, "convolution", reason)

"""In which kind each weight of a model is packed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from operator import attrgetter

import torch
from torch import nn

from hfaccel.engine.calibration.experts import is_too_lossy
from hfaccel.engine.calibration.quantization import Verdict, reasons
from hfaccel.engine.experts.form import DOWN, form_of
from hfaccel.engine.experts.selection import SUBJECT
from hfaccel.engine.kernels import Kind
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.plan import Step
from hfaccel.engine.weights.checkpoints.conversion import Converted
from hfaccel.engine.weights.grids import Grids, find_grids
from hfaccel.engine.weights.linear import weight_class
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.engine.weights.repacking import kind_of

WEIGHT_ONLY = (Kind.INT8_WEIGHT_ONLY, Kind.INT4_WEIGHT_ONLY)


def find(
    model: nn.Module,
    linears: Iterable[nn.Linear],
    experts: Iterable[str],
    layers: Iterable[tuple[nn.Module, Family]],
    wanted: Kind | None,
    quantized: Converted,
) -> Grids:
    """Which of these weights lie on grids, of those that are packed in a kind in groups, or in any kind if a
    quantizer has loaded the model."""
    if not (quantized.expanded if wanted is None else wanted in WEIGHT_ONLY):
        return Grids({}, frozenset())
    found = {linear.weight: weight_class(linear) for linear in linears}
    weights = {weight: form for weight, form in found.items() if weight not in quantized.weights}
    stacks = [_stacks(model.get_submodule(path)) for path in experts]
    for stack in stacks:
        weights |= stack
    together = [some for layer, family in layers for some in weights_with_equal_inputs(layer, family)]
    return find_grids(weights, [*together, *map(list, stacks)], wanted)


def weights_with_equal_inputs(layer: nn.Module, family: Family) -> Iterator[Sequence[torch.Tensor]]:
    """The kernels round the inputs of query, key and value once, and those of gate and up: in the kind that
    all of these have."""
    for paths in filter(None, (family.attention_inputs, family.wide_inputs)):
        yield [attrgetter(path)(layer).weight for path in paths]


def kind_or_own(weight: torch.Tensor, wanted: Kind | None) -> Kind:
    return kind_of(weight.dtype) if wanted is None else wanted


def of_convolutions(wanted: Kind | None) -> Kind | None:
    """Groups are for linear layers with few rows; a convolution has as many as there are pixels."""
    return None if wanted is not None and wanted.is_grouped else wanted


def steps_of_linears(
    linears: Mapping[nn.Linear, str],
    wanted: Kind | None,
    verdict: Verdict,
    quantized: Set[torch.Tensor],
    grids: Grids,
) -> list[Step]:
    said = reasons(verdict, {path: linear.weight for linear, path in linears.items()})
    steps = []
    for linear, path in linears.items():
        weight = linear.weight
        if isinstance(weight, PackedWeight) and (wanted is None or weight in quantized):
            kind = weight.kind
        elif wanted is Kind.INT8:
            kind = verdict.kind(weight)
        else:
            kind = grids.kind(weight, kind_or_own(weight, wanted))
        reason = said.get(weight) or grids.reason(weight, kind)
        error = verdict.errors.get(weight) if kind is Kind.INT8 else None
        steps.append(Step(path, "linear", {"kind": kind.label}, "linear layer", reason, error=error))
    return steps


def steps_of_experts(
    model: nn.Module, found: Mapping[str, str], wanted: Kind | None, grids: Grids
) -> list[Step]:
    """`found`: the paths of experts, and their formulas."""
    steps = []
    for path, formula in found.items():
        module = model.get_submodule(path)
        weight = module._parameters[DOWN]
        assert weight is not None
        kind = grids.kind(weight, kind_or_own(weight, wanted))
        lossy = kind is Kind.INT8 and is_too_lossy(module)
        kind = Kind.BFLOAT16 if lossy else kind
        reason = grids.reason(weight, kind) + (", because int8 would lose too much" if lossy else "")
        steps.append(Step(path, "experts", {"kind": kind.label, "formula": formula}, SUBJECT, reason))
    return steps


def _stacks(experts: nn.Module) -> dict[torch.Tensor, type[PackedWeight]]:
    """The weights of a layer's experts."""
    found = ((experts._parameters[name], cls) for name, cls in form_of(experts).weights.items())
    return {weight: cls for weight, cls in found if weight is not None}

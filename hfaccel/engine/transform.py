"""A model -> the same model, with its layers fused and its linear layers packed; and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from hfaccel.engine.convolve import prepare_convolutions, restore_convolutions, select_convolutions
from hfaccel.engine.counting import watch
from hfaccel.engine.dependence import compute_where_read
from hfaccel.engine.embeddings import FusedEmbeddings, embeddings_of
from hfaccel.engine.fallback import forget
from hfaccel.engine.families import Family
from hfaccel.engine.gains import (
    Gains,
    combined,
    is_own_forward_slower,
    of_layers,
    of_linears,
    slower,
)
from hfaccel.engine.kernels import Kind
from hfaccel.engine.layer import FusedLayer, fuse, run_stock, unfuse
from hfaccel.engine.linear import PackedModule, is_linear, linear_problem, pack, unpack_all, weight_class
from hfaccel.engine.losses import Verdict, try_int8
from hfaccel.engine.outside import OutsideModel, keep_outside
from hfaccel.engine.packed import PackedWeight
from hfaccel.engine.padding import PaddedModel, forget_padded, watch_padding
from hfaccel.engine.repacking import kind_of
from hfaccel.engine.shortcut import ShortModel, shorten, unshorten
from hfaccel.engine.smoothing import smooth_layers
from hfaccel.engine.stack import FusedStack, stack_layers
from hfaccel.engine.swapped import swap, swap_back
from hfaccel.engine.trial import Trials, match
from hfaccel.memory import Arena, pack_, padded
from hfaccel.outcome import Outcome, merge

Layers = list[tuple[nn.Module, Family]]


@dataclass(frozen=True)
class Precision:
    """In which numbers the linear layers multiply. None: in those of the checkpoint."""

    wanted: Kind | None = None
    exceptions: Mapping[int, Kind] = field(default_factory=dict)  # id of a weight -> instead of `wanted`

    def kind(self, weight: torch.Tensor) -> Kind:
        if id(weight) in self.exceptions:
            return self.exceptions[id(weight)]
        if self.wanted is not None:
            return self.wanted
        return kind_of(weight.dtype)

    @property
    def rounds(self) -> bool:
        """Whether values change: then the given model keeps its own weights."""
        return self.wanted in (Kind.BFLOAT16, Kind.INT8)


def transform(
    model: nn.Module,
    *,
    precision: Precision | None = None,
    huge_pages: bool = True,
    unpad: bool | str = "auto",
    samples: Sequence[Mapping[str, torch.Tensor]] = (),
) -> tuple[Outcome, ...]:
    """Fuse and pack what pays, in place. Parameters keep shape, values (up to the precision asked for)
    and, where no value is rounded, identity. `unpad`: whether padding is left out; "auto": where the calls of
    models tell that it may be (engine.padding). `samples`: typical inputs, on which int8 is tried."""
    precision = precision or Precision()
    outcomes: list[Outcome] = []
    layers = _select_layers(model, outcomes)
    convolutions = select_convolutions(model, [layer for layer, _ in layers])
    linears = _select_linears(model, layers, outcomes)
    verdict = Verdict()
    if precision.wanted is Kind.INT8:
        dense = [linear for linear in linears if _is_dense(linear.weight, precision)]
        verdict = try_int8(model, layers, dense, smooth_layers(model, layers), samples)
        precision = replace(precision, exceptions=verdict.higher)
    times = of_linears(_outside(linears, layers), precision.kind)
    linears = _without_slower(linears, times, outcomes)
    gain = combined(each for linear in linears for each in times.get(id(linear), {}).values())
    with torch.inference_mode(False):  # tensors of its memory shall have versions
        arena = Arena(_size(linears, precision), pages="thp" if huge_pages else "default")
    packed: dict[int, PackedWeight] = {}
    for linear in linears:
        outcome = _pack(linear, arena, precision, packed, verdict)
        outcomes.append(replace(outcome, gain=gain) if id(linear) in times else outcome)
    for layer, family in layers:
        fuse(layer, family, unpad)
    if unpad == "auto":
        compute_where_read(model, [layer for layer, _ in layers])
    outcomes += _judge([layer for layer, _ in layers])
    if unpad == "auto":
        outcomes += watch_padding(model, [layer for layer, _ in layers if isinstance(layer, FusedLayer)])
    elif unpad and layers:
        outcomes.append(
            Outcome(
                type(model).__name__, True, "padding is left out of every call, as asked for by unpad=True"
            )
        )
    outcomes += prepare_convolutions(convolutions, precision.kind)
    outcomes.extend(_embeddings(module, problem) for module, problem in embeddings_of(model))
    outcomes.extend(_stacked(module, problem) for module, problem in stack_layers(model))
    watch(model)  # before shortcuts, which hold only while no module gets or loses an attribute
    outcomes.extend(_shortened(module, problem) for module, problem in shorten(model))
    keep_outside(model)
    outcomes.append(_pages(arena))
    if huge_pages:
        outcomes.append(_rest_of(model))
    return merge(outcomes)


def restore(model: nn.Module) -> None:
    """Undo transform, in place: classes and memory layout as before, values untouched. Raises HfaccelError,
    and undoes nothing, where a weight cannot be unpacked."""
    unpack_all([module for module in model.modules() if isinstance(module, PackedModule)])
    for module in model.modules():
        if isinstance(module, ShortModel):
            unshorten(module)
        elif isinstance(module, FusedStack | FusedEmbeddings | PaddedModel | OutsideModel):
            forget(module)
            forget_padded(module)
            swap_back(module)
        elif isinstance(module, FusedLayer):
            unfuse(module)
    restore_convolutions(model)


def _select_layers(model: nn.Module, outcomes: list[Outcome]) -> Layers:
    selected: Layers = []
    trials: Trials = {}
    for layer in model.modules():
        if isinstance(layer, FusedLayer):
            continue
        verdict = match(layer, trials)
        if verdict is None:
            continue
        family, problem = verdict
        if family is None:
            outcomes.append(Outcome(type(layer).__name__, False, f"not fused: {problem}"))
        else:
            selected.append((layer, family))
    return selected


def _select_linears(model: nn.Module, layers: Layers, outcomes: list[Outcome]) -> list[Any]:
    """Those to pack, in memory order: the fused layers' first, each layer's side by side."""
    of_layers = {id(linear): linear for layer, family in layers for linear in family.linears(layer)}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    selected: list[Any] = list(of_layers.values())
    for module in model.modules():
        if not is_linear(module) or id(module) in of_layers:
            continue
        problem = linear_problem(module)
        if not problem and id(module.weight) in embeddings:
            problem = "its weight is tied to an embedding, which needs it row by row"
        if problem:
            outcomes.append(Outcome("linear layer", False, f"not packed: {problem}"))
        else:
            selected.append(module)
    return selected


def _outside(linears: list[Any], layers: Layers) -> list[Any]:
    """The linear layers of no fused layer."""
    inside = {id(linear) for layer, family in layers for linear in family.linears(layer)}
    return [linear for linear in linears if id(linear) not in inside]


def _without_slower(linears: list[Any], gains: dict[int, Gains], outcomes: list[Outcome]) -> list[Any]:
    losers = {key: found for key, found in gains.items() if slower(found)}
    for found in losers.values():
        outcomes.append(_left(found, "linear layer", "not packed", "torch's own"))
    return [linear for linear in linears if id(linear) not in losers]


def _left(gains: Gains, subject: str, what: str, stock: str) -> Outcome:
    """That something was left as it was."""
    worst = min(slower(gains), key=lambda regime: gains[regime].gain)
    gain = gains[worst].gain
    return Outcome(
        subject, False, f"{what}: {gain:.2f} times as fast as {stock} here with {worst.name} rows", gain=gain
    )


def _judge(layers: list[nn.Module]) -> list[Outcome]:
    """What is said of fused layers. Where one is slower its own forward runs; where that is slower too,
    because its weights are packed, the layer becomes what it was."""
    fused = [layer for layer in layers if isinstance(layer, FusedLayer)]
    gains = of_layers(fused)
    settled: dict[int, tuple[str, ...] | None] = {}  # id of gains, which layers of a kind share -> regimes
    outcomes = []
    for layer in fused:
        found, subject = gains.get(id(layer), {}), f"{layer.hfaccel_family.name} layer"
        if found and id(found) not in settled:
            settled[id(found)] = _regimes_on_its_own(layer, found)
        own = settled[id(found)] if found else ()
        if own is None:
            outcomes.append(_left(found, subject, "not fused", "its own forward"))
            unfuse(layer)
            unpack_all([module for module in layer.modules() if isinstance(module, PackedModule)])
            continue
        run_stock(layer, own)
        reason = f"runs as one function, {'without' if layer.unpads else 'with'} padding"
        if own:
            reason += f"; with {' and '.join(own)} rows its own forward runs, which is faster here"
        outcomes.append(Outcome(subject, True, reason, gain=combined(found.values())))
    return outcomes


def _regimes_on_its_own(layer: FusedLayer, gains: Gains) -> tuple[str, ...] | None:
    """The regimes in which the layer's own forward runs; None: it is not to be fused at all."""
    lost = slower(gains)
    if len(lost) == len(gains) > 0 or any(is_own_forward_slower(layer, regime) for regime in lost):
        return None
    return tuple(regime.name for regime in lost)


def _pack(
    linear: Any,
    arena: Arena,
    precision: Precision,
    packed: dict[int, PackedWeight],
    verdict: Verdict,
) -> Outcome:
    weight = linear.weight
    kind = precision.kind(weight)
    if precision.rounds and _is_dense(weight, precision):
        # Not in the parameter's place: the model that was given keeps its values.
        if id(weight) not in packed:
            packed[id(weight)] = _packed(linear, arena, kind, verdict)
        linear.weight = packed[id(weight)]
    problem = pack(linear, arena, kind)
    reason = verdict.reasons.get(id(weight), f"packed in {kind.label}")
    return Outcome("linear layer", not problem, f"not packed: {problem}" if problem else reason)


def _packed(linear: Any, arena: Arena, kind: Kind, verdict: Verdict) -> PackedWeight:
    tried = verdict.packed.pop(id(linear.weight), None)
    if tried is None:
        return weight_class(linear).pack(linear.weight, arena, kind)
    return tried.over(arena.take(tried.memory.shape, torch.uint8).copy_(tried.memory))


def _is_dense(weight: torch.Tensor, precision: Precision) -> bool:
    """Whether the weight still has to be packed: it is not, or otherwise than is asked for."""
    if not isinstance(weight, PackedWeight):
        return True
    return precision.rounds and weight.kind is not precision.kind(weight)


def _size(linears: list[Any], precision: Precision) -> int:
    layers = {id(linear.weight): linear for linear in linears if _is_dense(linear.weight, precision)}
    layouts = (
        weight_class(linear).layout_of(precision.kind(linear.weight), linear.weight.shape)
        for linear in layers.values()
    )
    return sum(padded(layout.nbytes) for layout in layouts)


def _rest_of(model: nn.Module) -> Outcome:
    """Embeddings, norms and biases: everything that is not packed."""
    packed = pack_(model)
    moved, stayed = packed.moved / 2**20, packed.in_place / 2**20
    size = f"other tensors: {moved:.1f} MiB moved next to each other, {stayed:.1f} MiB made huge in place"
    return Outcome("huge pages", not packed.problem, packed.problem or size)


def _stacked(module: nn.Module, problem: str) -> Outcome:
    reason = f"its layers run one by one ({problem})" if problem else "its layers run in one call"
    return Outcome(type(module).__name__.removeprefix("Fused"), not problem, reason)


def _shortened(module: nn.Module, problem: str) -> Outcome:
    reason = "calls without padding need not run its own forward"
    if problem:
        reason = f"every call runs its own forward ({problem})"
    return Outcome(type(module).__name__, not problem, reason)


def _embeddings(module: nn.Module, problem: str) -> Outcome:
    subject = type(module).__name__
    if problem:
        return Outcome(subject, False, f"not fused: {problem}")
    swap(module, FusedEmbeddings)
    return Outcome(subject, True, "looks up, adds and norms in one pass")


def _pages(arena: Arena) -> Outcome:
    if arena.used == 0:
        return Outcome("huge pages", False, arena.problem or "no weight was moved")
    size = f"{arena.used / 2**20:.1f} MiB of weights in memory advised for huge pages"
    return Outcome("huge pages", not arena.problem, arena.problem or size)

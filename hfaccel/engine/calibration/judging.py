"""Drops the steps of a plan that would make the model slower."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from hfaccel.engine.calibration.speedups import (
    Speedups,
    combined,
    is_own_forward_slower,
    of_layers,
    of_linears,
    slower,
)
from hfaccel.engine.calls.regimes import REGIMES
from hfaccel.engine.kernels import Kind
from hfaccel.engine.layers.layer import FusedLayer, run_stock
from hfaccel.engine.plan import Step, module_at
from hfaccel.engine.weights.linear import PackedModule, unpack_all
from hfaccel.outcome import Outcome
from hfaccel.replacement import undo


def judge_linears(
    model: nn.Module, steps: Iterable[Step], fused: Iterable[nn.Module]
) -> tuple[list[Step], list[Outcome]]:
    """The steps for the linear layers that are worth packing, with their speed-ups, and why the others are
    left alone. No weight is packed yet. Linear layers of `fused` layers are judged with their layers."""
    steps, inside = list(steps), {part for layer in fused for part in layer.modules()}
    kinds: dict[nn.Linear, Kind] = {
        module_at(model, step.path): Kind.of(step.settings["kind"]) for step in steps
    }
    measured = of_linears({module: kind for module, kind in kinds.items() if module not in inside})
    for head in measured.keys() & _vocabularies(model):
        measured[head] = _without_many(measured[head])
    losers = {module for module, speedups in measured.items() if slower(speedups)}
    left = [_left(measured[module], "linear layer", "not packed", "torch's own") for module in losers]
    speedup = combined(
        times for module in measured if module not in losers for times in measured[module].values()
    )
    kept = [
        replace(step, speedup=speedup if module in measured else None)
        for step, module in zip(steps, kinds, strict=True)
        if module not in losers
    ]
    return kept, left


def _vocabularies(model: nn.Module) -> set[nn.Module]:
    """Linear layers that choose the next token: generate() gives them one row for each text."""
    modules: Iterable[Any] = model.modules()
    models = (each for each in modules if hasattr(each, "can_generate") and each.can_generate())
    return {each.get_output_embeddings() for each in models}


def _without_many(speedups: Speedups) -> Speedups:
    return {regime: times for regime, times in speedups.items() if regime is not REGIMES[-1]}


def judge_layers(model: nn.Module, steps: Sequence[Step]) -> tuple[list[Step], list[Outcome]]:
    """The steps for layers, which are fused already. A layer that is slower fused with some number of rows
    runs its own forward there. If the own forward is slower too, because the weights are packed, the layer is
    restored."""
    layers: dict[FusedLayer, Step] = {module_at(model, step.path): step for step in steps}
    measured = of_layers(layers)
    settled: dict[
        object, tuple[str, ...] | None
    ] = {}  # measurement -> regimes: once for all layers of a kind
    kept: list[Step] = []
    left: list[Outcome] = []
    for layer, step in layers.items():
        speedups = measured.get(layer, {})
        key = (*speedups.items(),)
        if key not in settled:
            settled[key] = _regimes_on_its_own(layer, speedups)
        own = settled[key]
        if own is None:
            left.append(_left(speedups, step.subject, "not fused", "its own forward"))
            undo(layer)
            unpack_all([module for module in layer.modules() if isinstance(module, PackedModule)])
            continue
        run_stock(layer, own)
        reason = "runs as one function"
        if not layer.hfaccel_family.call.follows:
            reason += f", {'without' if layer.unpads else 'with'} padding"
        if own:
            reason += f"; with {' and '.join(own)} rows its own forward runs, which is faster here"
        settings = {**step.settings, "slower": [*own]}
        kept.append(replace(step, settings=settings, reason=reason, speedup=combined(speedups.values())))
    return kept, left


def _regimes_on_its_own(layer: FusedLayer, speedups: Speedups) -> tuple[str, ...] | None:
    """The regimes in which the layer runs its own forward; None if the layer should not be fused at all."""
    lost = slower(speedups)
    if len(lost) == len(speedups) > 0 or any(is_own_forward_slower(layer, regime) for regime in lost):
        return None
    return tuple(regime.name for regime in lost)


def _left(speedups: Speedups, subject: str, what: str, stock: str) -> Outcome:
    """The report's line about something that was left as it was."""
    worst = min(slower(speedups), key=lambda regime: speedups[regime].gain)
    gain = speedups[worst].gain
    return Outcome(
        subject, False, f"{what}: {gain:.2f} times as fast as {stock} here with {worst.name} rows", gain=gain
    )

"""The speed-up of fused layers and packed linear layers over the model's own, measured on this machine at the
current number of threads.

One layer of each kind is measured, with few, some and many rows. The caller decides what to do with slower
ones.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import nn

from hfaccel.engine.calls.fallback import COUNTED
from hfaccel.engine.calls.kinds import kind_of
from hfaccel.engine.calls.regimes import REGIMES, Regime
from hfaccel.engine.kernels import Kind
from hfaccel.engine.layers.layer import FusedLayer
from hfaccel.engine.layers.trial import call, sample
from hfaccel.engine.weights.linear import PackedModule, fits, linear, unpack, weight_class
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.replacement import undo

BUDGET = 1.0  # seconds for all fused layers, and for all linear layers; the last measurement may exceed them
LEAD = 3  # pairs won minus pairs lost at which the fast side counts as faster
BEHIND = 5  # pairs lost minus pairs won at which it counts as slower: a disturbance costs several pairs
PAIRS = 15  # at most; if neither side leads by then, the least times decide
NOT_SLOWER = 0.97  # the tolerance of that decision
CLEAR = 1.3  # a layer this much faster with few and some rows is not slower with many
SMALLEST = 1 << 18  # elements of a weight; with smaller weights a timing would show the cost of a call
LARGEST = 1 << 25  # elements; of a larger weight only some rows are measured

Call = Callable[[], object]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Times:
    """Seconds of one call on either side, the least of several taken in turn, and how many pairs the fast
    side won and lost."""

    stock: float = math.inf
    fast: float = math.inf
    won: int = 0
    lost: int = 0

    @property
    def gain(self) -> float:
        return self.stock / self.fast

    @property
    def is_slower(self) -> bool:
        if self.is_decided:
            return self.lost > self.won
        return self.fast * NOT_SLOWER > self.stock

    @property
    def is_decided(self) -> bool:
        return self.won - self.lost >= LEAD or self.lost - self.won >= BEHIND

    def after(self, stock: float, fast: float) -> Times:
        """These times and one more pair."""
        won = fast <= stock
        return Times(min(self.stock, stock), min(self.fast, fast), self.won + won, self.lost + (not won))


def combined(measured: Iterable[Times]) -> float | None:
    """The gain of all measurements together; None for an empty iterable."""
    found = list(measured)
    if not found:
        return None
    return sum(times.stock for times in found) / sum(times.fast for times in found)


Speedups = Mapping[Regime, Times]


def of_layers(layers: Iterable[FusedLayer]) -> dict[nn.Module, Speedups]:
    """The times of each layer, by regime. Layers that were not measured are missing, and so are those with
    weights in groups: they would be compared with layers that read several times the bytes."""
    kinds: dict[Hashable, list[FusedLayer]] = {}
    for layer in layers:
        if not any(_is_grouped(linear) for linear in layer.hfaccel_family.linears(layer)):
            kinds.setdefault((layer.hfaccel_family.name, kind_of(layer)), []).append(layer)
    return dict(_one_of_each(kinds, _layer_speedups))


def of_linears(wanted: Mapping[nn.Linear, Kind]) -> dict[nn.Module, Speedups]:
    """The times that linear layers would have with weights packed in these kinds, by regime. Layers that
    were not measured are missing, and so are weights in groups: these are asked for to save bytes, even if
    calls with many rows are slower."""
    kinds: dict[Hashable, list[nn.Linear]] = {}
    for module, kind in wanted.items():
        weight = module.weight
        if kind.is_grouped:
            continue
        if weight.numel() >= SMALLEST and not isinstance(weight, PackedWeight) and fits(module.bias):
            kinds.setdefault((weight.shape, weight.dtype, kind), []).append(module)
    return dict(_one_of_each(kinds, lambda module: _linear_speedups(module, wanted[module])))


def slower(speedups: Speedups) -> list[Regime]:
    return [regime for regime, times in speedups.items() if times.is_slower]


def _one_of_each(
    kinds: dict[Hashable, list[M]], measure: Callable[[M], Speedups]
) -> Iterator[tuple[nn.Module, Speedups]]:
    until = time.perf_counter() + BUDGET
    for modules in sorted(kinds.values(), key=lambda some: -len(some) * _numbers(some[0])):
        if time.perf_counter() >= until:
            return
        speedups = measure(modules[0])
        if speedups:
            yield from ((module, speedups) for module in modules)


def _layer_speedups(layer: FusedLayer) -> Speedups:
    """The times of a fused layer, by regime; empty if the kernels would not run."""
    return _speedups(lambda regime: _time_layer(layer, regime))


def _linear_speedups(module: nn.Linear, kind: Kind) -> Speedups:
    return _speedups(lambda regime: _time_linear(module, kind, regime.batch * regime.length))


def _speedups(measure: Callable[[Regime], Times | None]) -> Speedups:
    speedups: dict[Regime, Times] = {}
    for regime in REGIMES:
        if regime is REGIMES[-1] and min(times.gain for times in speedups.values()) > CLEAR:
            break
        times = measure(regime)
        if times is None:
            return {}
        speedups[regime] = times
    return speedups


def _is_grouped(linear: nn.Linear) -> bool:
    weight = linear.weight
    return isinstance(weight, PackedWeight) and weight.kind.is_grouped


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _time_layer(layer: FusedLayer, regime: Regime, *, own_forward: bool = False) -> Times | None:
    """None if the kernels would not run. `own_forward`: time the layer's own forward on packed weights
    instead of the kernels."""
    family = layer.hfaccel_family
    if regime.length > family.call.longest(layer, family):
        return None
    dtype = family.linears(layer)[0].weight.dtype
    hidden, (mask, *_), arguments = sample(layer, family, regime.batch, regime.length, dtype)
    stock = _stock_twin(layer)
    fast: Any = layer
    if own_forward:
        fast = SimpleNamespace(forward=functools.partial(layer.hfaccel_original.forward, layer))
    times = time_pairs(
        lambda: call(stock, family, hidden, mask, arguments),
        lambda: call(fast, family, hidden, mask, arguments),
    )
    return None if layer.__dict__.pop(COUNTED, None) else times


def is_own_forward_slower(layer: FusedLayer, regime: Regime) -> bool:
    """Whether the layer's own forward is slower on packed weights than on ordinary ones."""
    times = _time_layer(layer, regime, own_forward=True)
    return times is not None and times.is_slower


def _stock_twin(layer: FusedLayer) -> nn.Module:
    """A copy of the layer from before the fusion, with weights of the same shapes."""
    shared = {id(tensor): tensor for tensor in (*layer.parameters(), *layer.buffers())}
    for weight in layer.parameters():
        if isinstance(weight, PackedWeight):
            shared[id(weight)] = nn.Parameter(torch.full(weight.shape, 0.01, dtype=weight.dtype), False)
    twin = copy.deepcopy(layer, shared)
    undo(twin)
    for module in twin.modules():
        if isinstance(module, PackedModule):
            unpack(module)
    return twin


def _time_linear(module: nn.Linear, kind: Kind, count: int) -> Times:
    weight = module.weight
    bias: torch.Tensor | None = module.bias
    cls = weight_class(module)
    if weight.numel() > LARGEST and cls is PackedWeight:  # memory for another copy may be scarce
        weight = nn.Parameter(weight.detach()[: LARGEST // weight.shape[1]], False)
        bias = None if bias is None else bias.detach()[: len(weight)]
    packed = cls.pack(weight, None, kind)
    rows = torch.full((count, packed.packing.columns), 0.5, dtype=weight.dtype)
    stock: Callable[[torch.Tensor], torch.Tensor] = module.forward
    if weight is not module.weight:
        stock = lambda rows: nn.functional.linear(rows, weight, bias)  # noqa: E731
    return time_pairs(lambda: stock(rows), lambda: linear(rows, packed, bias))


def time_pairs(stock: Call, fast: Call) -> Times:
    """Time pairs of calls in turn until one side leads."""
    times = Times()
    with torch.inference_mode():
        stock(), fast()  # warm-up
        for _ in range(PAIRS):
            times = times.after(_seconds(stock), _seconds(fast))
            if times.is_decided:
                break
    return times


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

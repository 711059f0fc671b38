"""How many times faster a fused layer, or a packed linear layer, is than the model's own: measured on this
machine when it is made, on a small input, in some milliseconds for a whole model.

One of each kind is measured, what the model has most of first. Not to use what is slower is up to the caller.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from hfaccel.engine.fallback import COUNTED
from hfaccel.engine.kernels import Kind
from hfaccel.engine.layer import FusedLayer, unfuse
from hfaccel.engine.linear import PackedModule, fits, linear, unpack, weight_class
from hfaccel.engine.packed import PackedWeight
from hfaccel.engine.trial import call, kind_of, sample
from hfaccel.memory import Arena

TOKENS = 128
BUDGET = 0.05  # seconds for all fused layers, and for all linear layers; what was begun is ended
ROUNDS = (2, 5, 15)  # at least; at most; before something is called slower: other programs disturb
NOT_SLOWER = 0.9
SMALLEST = 1 << 18  # numbers of a weight: below, the cost of a call is measured and not the layer
LARGEST = 1 << 25  # above, a single call takes longer than all may

Call = Callable[[], object]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Times:
    """Seconds of one call: the least of several, the two in turn."""

    stock: float = math.inf
    fast: float = math.inf

    @property
    def gain(self) -> float:
        return self.stock / self.fast

    @property
    def is_slower(self) -> bool:
        return self.fast * NOT_SLOWER > self.stock


def combined(measured: Iterable[Times]) -> float | None:
    """The gain of all together; None for none."""
    found = list(measured)
    if not found:
        return None
    return sum(times.stock for times in found) / sum(times.fast for times in found)


def of_layers(layers: Iterable[FusedLayer]) -> dict[int, Times]:
    """id of a layer -> its times. Those that were not measured are missing."""
    kinds: dict[Hashable, list[FusedLayer]] = {}
    for layer in layers:
        if _numbers(layer) <= LARGEST:
            kinds.setdefault(kind_of(layer.hfaccel_family, layer), []).append(layer)
    return dict(_one_of_each(kinds, _time_layer))


def of_linears(modules: Iterable[Any], kind: Callable[[torch.Tensor], Kind]) -> dict[int, Times]:
    """id of a linear layer, which is not packed yet -> its times if its weight were packed in `kind(weight)`.
    Those that were not measured are missing."""
    kinds: dict[Hashable, list[Any]] = {}
    for module in modules:
        weight = module.weight
        if (
            SMALLEST <= weight.numel() <= LARGEST
            and not isinstance(weight, PackedWeight)
            and fits(module.bias)
        ):
            kinds.setdefault((weight.shape, weight.dtype, kind(weight)), []).append(module)
    return dict(_one_of_each(kinds, lambda module, until: _time_linear(module, kind(module.weight), until)))


def _one_of_each(
    kinds: dict[Hashable, list[M]], measure: Callable[[M, float], Times | None]
) -> Iterator[tuple[int, Times]]:
    until = time.perf_counter() + BUDGET
    for modules in sorted(kinds.values(), key=lambda some: -len(some) * _numbers(some[0])):
        if time.perf_counter() >= until:
            return
        times = measure(modules[0], until)
        if times is not None:
            yield from ((id(module), times) for module in modules)


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _time_layer(layer: FusedLayer, until: float) -> Times | None:
    """None where the layer would not run fused."""
    family = layer.hfaccel_family
    dtype = family.linears(layer)[0].weight.dtype
    hidden, (mask, *_), arguments = sample(layer, family, 1, TOKENS, dtype)
    stock = _stock_twin(layer)
    times = _time(
        lambda: call(stock, family, hidden, mask, arguments),
        lambda: call(layer, family, hidden, mask, arguments),
        until,
    )
    return None if layer.__dict__.pop(COUNTED, None) else times


def _stock_twin(layer: FusedLayer) -> nn.Module:
    """A copy as it was before it was fused. Of its weights only the shapes count here."""
    shared = {id(tensor): tensor for tensor in (*layer.parameters(), *layer.buffers())}
    for weight in layer.parameters():
        if isinstance(weight, PackedWeight):
            shared[id(weight)] = nn.Parameter(torch.full(weight.shape, 0.01, dtype=weight.dtype), False)
    twin = copy.deepcopy(layer, shared)
    unfuse(twin)
    for module in twin.modules():
        if isinstance(module, PackedModule):
            unpack(module)
    return twin


def _time_linear(module: Any, kind: Kind, until: float) -> Times:
    weight, bias = module.weight, module.bias
    cls = weight_class(module)
    arena = Arena(cls.layout_of(kind, weight.shape).nbytes, pages="default")
    packed = cls.pack(weight, arena, kind)
    rows = torch.full((TOKENS, packed.packing.columns), 0.5, dtype=weight.dtype)
    return _time(lambda: module.forward(rows), lambda: linear(rows, packed, bias), until)


def _time(stock: Call, fast: Call, until: float) -> Times:
    """Within ROUNDS, until time.perf_counter() says so."""
    times = Times()
    with torch.inference_mode():
        stock(), fast()  # what only the first call does
        for done in range(ROUNDS[-1]):
            late = done >= ROUNDS[1] or time.perf_counter() >= until
            if done >= ROUNDS[0] and late and not times.is_slower:
                break
            times = Times(min(times.stock, _seconds(stock)), min(times.fast, _seconds(fast)))
    return times


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

"""Whether all layers of a stack are as they were when they last ran together, in one comparison.

Between two tokens Python finds its working set evicted by the weights: asking the layers one by one would
take a large part of a small model's token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import is_
from typing import Any

from torch import nn

from hfaccel.engine.calls.guards import GLOBAL_HOOKS
from hfaccel.engine.calls.snapshot import Held, Snapshot
from hfaccel.engine.layers.native_layer import NativeLayer


class Checked:
    """Layers that were found fit to run together, outside of autocast, and their NativeLayers."""

    def __init__(self, layers: Sequence[nn.Module], natives: Sequence[NativeLayer]) -> None:
        self.layers, self.natives = tuple(layers), tuple(natives)
        self._codes = {native.code for native in natives}
        pairs = list(zip(layers, natives, strict=True))
        held = (row for layer, native in pairs for row in _held(layer, native))
        hooks = (table for layer, native in pairs for table in _hooks(layer, native))
        vectors = (vector for native in natives for _, _, vector in native.vectors if vector is not None)
        modules = (module for layer, native in pairs for module in (layer, *native.modules))
        self._copied = [tensor for native in natives for tensor in native.copied]
        self._versions = [tensor._version for tensor in self._copied]
        self._snapshot = Snapshot(held, (*hooks, *GLOBAL_HOOKS), vectors, modules)

    def holds(self, layers: Sequence[nn.Module]) -> bool:
        """Whether these are the layers, and nothing about them has changed."""
        same = len(layers) == len(self.layers) and all(map(is_, layers, self.layers))
        changed = [tensor._version for tensor in self._copied] != self._versions
        return same and not changed and self._snapshot.holds() and all(code.holds() for code in self._codes)


def _held(layer: nn.Module, native: NativeLayer) -> Iterator[Held]:
    attributes = vars(layer)
    yield attributes, "training", False
    yield from ((attributes, name, attributes.get(name)) for name in native.own)
    yield from native.held(layer)


def _hooks(layer: nn.Module, native: NativeLayer) -> Iterator[dict[int, Any]]:
    yield from (layer._forward_hooks, layer._forward_pre_hooks, *native.hooks)

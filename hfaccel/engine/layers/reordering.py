"""Layers of transformers' cache that beam search reorders without needless copies.

Beam search reorders the whole cache for each token. transformers copies each tensor; then the kernels would
copy it again into memory with room for the next tokens. A layer of one of these classes shows its rows in
their new order in such memory at once, for all layers together, and copies nothing where the order stays, or
where rows that change places are equal: those of an encoder are, for all beams of a text.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from hfaccel.engine.layers.cache_in_bytes import hold
from hfaccel.engine.layers.rooms import SHOWN, Memory, Shown
from hfaccel.replacement import PREFIX
from hfaccel.upstream.of_transformers import cache_classes

ALIKE = PREFIX + "alike"  # attribute of a layer with an encoder's tokens


class Alike:
    """Which rows of an encoder's keys and values are equal: those with the same number."""

    def __init__(self, numbers: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.numbers = numbers
        self.tensors = keys, values
        self.versions = [tensor._version for tensor in self.tensors]

    def keeps(self, layer: Any, order: torch.Tensor) -> bool:
        """Whether the layer shows the same in this order."""
        shows = layer.keys is self.tensors[0] and layer.values is self.tensors[1]
        same = shows and [tensor._version for tensor in self.tensors] == self.versions
        return same and self.numbers.index_select(0, order).equal(self.numbers)


def numbers_of(rows: torch.Tensor) -> torch.Tensor:
    """(rows,): a number for each row, the same for equal ones that follow one another."""
    differs = (rows[1:] != rows[:-1]).flatten(1).any(1)
    return torch.cat([differs.new_zeros(1, dtype=torch.long), differs.cumsum(0)])


def reordered(memory: Memory, order: torch.Tensor) -> Memory:
    """The rows of a memory in this order, in a memory of its own: made once for all layers."""
    sources = order.tolist()
    state = sources, [*memory.ends], memory.tensor._version
    if memory.reordered is None or memory.reordered[0] != state:
        memory.reordered = state, _in_order(memory, sources)
    return memory.reordered[1] or memory


def _in_order(memory: Memory, sources: list[int]) -> Memory | None:
    """None where that is the present order."""
    old, end = memory.tensor, max(memory.ends)
    if sources == list(range(old.shape[2])):
        return None
    with torch.inference_mode(False), torch.no_grad():
        tensor = torch.empty((*old.shape[:2], len(sources), *old.shape[3:]), dtype=old.dtype)
        for row, source in enumerate(sources):
            tensor[:, :, row, :, :end] = old[:, :, source, :, :end]
    new = Memory(tensor)
    new.ends = [*memory.ends]
    return new


@cache
def _class() -> type[Any]:
    stock: type[Any] = cache_classes()[1]

    class Reordering(stock):  # type: ignore[misc]  # which class that is shows at run time
        hfaccel_stock = stock

        def reorder_cache(self, beam_idx: torch.Tensor) -> None:
            alike: Alike | None = self.__dict__.get(ALIKE)
            shown: Shown | None = self.__dict__.get(SHOWN)
            if alike is not None and alike.keeps(self, beam_idx):
                return
            if shown is None or not shown.is_last(self):
                super().reorder_cache(beam_idx)
                return
            memory = reordered(shown.memory, beam_idx)
            if memory is not shown.memory:
                show(self, memory, shown.number, shown.begin, shown.end)

        def __reduce__(self) -> tuple[object, ...]:
            """A copy is an ordinary layer until the kernels use it."""
            own = {name: value for name, value in self.__dict__.items() if not name.startswith(PREFIX)}
            return _empty, (), own

    Reordering.__name__ = Reordering.__qualname__ = stock.__name__
    return Reordering


def _empty() -> Any:
    return object.__new__(cache_classes()[1])


def show(layer: Any, memory: Memory, number: int, begin: int, end: int) -> None:
    keys, values = memory.tensor[number, :, :, :, begin:end].unbind()
    hold(layer, keys, values)
    layer.__dict__[SHOWN] = Shown(memory, number, begin, end, keys, values)


def let_reorder(layer: Any, alike: torch.Tensor | None = None) -> None:
    """From now on the layer reorders itself so. `alike`: numbers of equal rows."""
    if type(layer) is cache_classes()[1]:
        layer.__class__ = _class()
    if alike is not None:
        layer.__dict__[ALIKE] = Alike(alike, layer.keys, layer.values)

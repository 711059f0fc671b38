"""Room for the keys and values of a decoder layer, in which they grow without being copied.

transformers appends to a cache by torch.cat, which copies all of it for each token and layer. Here the
cache's layer is given views of larger memory, and the next tokens are written behind them. A view is never
written to: what a program holds of a cache stays as it is. Whoever changes the cache's layer (by reordering,
cropping or appending) puts other tensors there; the next call copies these into new room.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from hfaccel.replacement import PREFIX
from hfaccel.upstream.of_transformers import cache_classes

ROOM = PREFIX + "room"  # attribute of a cache's layer: the memory behind its keys and values
LEAST = 64  # tokens


@dataclass(eq=False)
class Memory:
    """(2, batch, heads, tokens, head size): keys and values, of which the first `end` tokens are written."""

    tensor: torch.Tensor
    end: int = 0


@dataclass(eq=False)
class Behind:
    """Which part of a memory a cache's layer shows."""

    memory: Memory
    begin: int
    end: int
    keys: weakref.ref[torch.Tensor]
    values: weakref.ref[torch.Tensor]

    def __deepcopy__(self, memo: object) -> None:
        """A copied cache has tensors of its own, which are given room when it grows."""

    def __reduce__(self) -> tuple[object, ...]:
        return _nothing, ()


def _nothing() -> None:
    return None


class Room:
    """Where the keys and values of one layer and call go."""

    def __init__(self, layer: Any, memory: Memory, begin: int, end: int, columns: int) -> None:
        self.layer, self.memory, self.begin, self.end, self.columns = layer, memory, begin, end, columns
        self.dtype = memory.tensor.dtype

    @property
    def past(self) -> int:
        return self.end - self.begin

    @cached_property
    def strides(self) -> tuple[int, int, int]:
        """From one sequence, head and token to the next, in numbers."""
        _, batch, head, token, _ = self.memory.tensor.stride()
        return batch, head, token

    @property
    def addresses(self) -> tuple[int, int]:
        """Of keys and values: of the first token that is shown."""
        tensor = self.memory.tensor
        first = tensor.data_ptr() + self.begin * self.strides[2] * tensor.element_size()
        return first, first + tensor.stride(0) * tensor.element_size()

    def clear(self) -> None:
        """What padding leaves unwritten is 0: other code multiplies it with 0."""
        self.memory.tensor[:, :, :, self.end : self.end + self.columns] = 0

    def keep(self) -> None:
        """Show the tokens of the call in the cache."""
        end = self.memory.end = self.end + self.columns
        layer, begin = self.layer, self.begin
        if layer.is_sliding:
            layer.cumulative_length += self.columns
            begin = max(begin, end - layer.sliding_window + 1)
        layer.keys, layer.values = self.memory.tensor[:, :, :, begin:end].unbind()
        places = weakref.ref(layer.keys), weakref.ref(layer.values)
        layer.__dict__[ROOM] = Behind(self.memory, begin, end, *places)


def new_cache() -> Any:
    """For a call without one."""
    return cache_classes()[0]()


def cache_problem(cache: Any, index: int) -> str:
    """Why the kernels cannot use this cache for the layer of this index; "" where they can."""
    whole, plain, sliding = cache_classes()
    if type(cache) is not whole:
        return f"the cache is a {type(cache).__name__}"
    if cache.offloading:
        return "the cache is offloaded"
    layer = _layer_of(cache, index)
    if type(layer) not in (plain, sliding):
        return f"the cache's layer is a {type(layer).__name__}"
    if type(layer) is sliding and layer.record_past:
        return "the cache records what lies before its window"
    return ""


def tokens_in(cache: Any, index: int) -> int:
    """How many tokens the cache's layer shows."""
    keys = _layer_of(cache, index).keys
    return 0 if keys is None or keys.numel() == 0 else int(keys.shape[2])


def _layer_of(cache: Any, index: int) -> Any:
    """The cache's layer of this index, which is made where there is none yet."""
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= index:
            cache.layers.append(cache.layer_class_to_replicate())
    return cache.layers[index]


def make_room(cache: Any, index: int, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Room:
    """For keys and values of this shape (batch, heads, tokens, head size) behind those of the layer. Raises
    ValueError where these are of another batch or size."""
    layer = _layer_of(cache, index)
    batch, heads, columns, size = shape
    if not layer.is_initialized:
        layer.lazy_initialization(torch.empty(0, dtype=dtype), torch.empty(0, dtype=dtype))
    behind: Behind | None = layer.__dict__.get(ROOM)
    if behind is not None and _has_room(layer, behind, columns, dtype):
        return Room(layer, behind.memory, behind.begin, behind.end, columns)
    past = 0 if layer.keys.numel() == 0 else layer.keys.shape[2]
    if past and tuple(layer.keys.shape) != (batch, heads, past, size):
        wanted, has = (batch, heads, past, size), tuple(layer.keys.shape)
        raise ValueError(f"a cache must hold keys of the shape {wanted}, but has {has}")
    return Room(layer, _grown(layer, past, shape, dtype), 0, past, columns)


def _has_room(layer: Any, behind: Behind, columns: int, dtype: torch.dtype) -> bool:
    """Whether the layer shows what was last written to the memory, and as much can be written behind that."""
    shown = layer.keys is behind.keys() and layer.values is behind.values()
    memory = behind.memory.tensor
    fits = memory.dtype is dtype and behind.end + columns <= memory.shape[3]
    return shown and fits and behind.memory.end == behind.end


def _grown(layer: Any, past: int, shape: Sequence[int], dtype: torch.dtype) -> Memory:
    batch, heads, columns, size = shape
    tokens = -(-max(past + columns + LEAST, 2 * past) // LEAST) * LEAST
    with torch.inference_mode(False):
        tensor = torch.empty((2, batch, heads, tokens, size), dtype=dtype)
    with torch.no_grad():
        for new, old in zip(tensor, (layer.keys, layer.values), strict=True):
            if past:
                new[:, :, :past] = old
    return Memory(tensor)

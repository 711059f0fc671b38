"""Room for the keys and values of decoder layers, in which they grow without being copied.

transformers appends to a cache by torch.cat, which copies all of it for each token and layer. Here the layers
of a cache are given views of larger memory, and the next tokens are written behind them. A view is never
written to: what a program holds of a cache stays as it is. Whoever changes a cache (by reordering, cropping
or appending) puts other tensors there; the next call copies these into new room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hfaccel.engine.kernels import NUMBERS
from hfaccel.engine.layers.cache_in_bytes import held, hold, narrowed, row_size, stock_class, widened
from hfaccel.replacement import PREFIX
from hfaccel.upstream.of_transformers import cache_classes

SHOWN = PREFIX + "shown"  # attribute of a cache's layer: what it shows of which memory
LEAST = 64  # tokens


class Memory:
    """(layers, 2, batch, heads, tokens, head size): keys and values. In bytes, a factor is behind the numbers
    of a head. `ends`: how many tokens of each layer are written."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.ends = [0] * len(tensor)
        self.address = tensor.data_ptr()
        self.bytes = [stride * tensor.element_size() for stride in tensor.stride()]
        # The last order that was asked for, of which state of this, and what it gave; None: the same.
        self.reordered: tuple[tuple[list[int], list[int], int], Memory | None] | None = None


class Shown:
    """Which tokens of a memory a cache's layer shows, and the views that it was given."""

    __slots__ = ("begin", "end", "keys", "memory", "number", "values")

    def __init__(
        self, memory: Memory, number: int, begin: int, end: int, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        self.memory, self.number, self.begin, self.end = memory, number, begin, end
        self.keys, self.values = keys, values

    def is_last(self, layer: Any) -> bool:
        """Whether the layer still shows this, and nothing was written behind it."""
        keys, values = held(layer)
        return keys is self.keys and values is self.values and self.memory.ends[self.number] == self.end

    def __deepcopy__(self, memo: object) -> None:
        """A copied cache has tensors of its own, which are given room when it grows."""

    def __reduce__(self) -> tuple[object, ...]:
        return _nothing, ()


def _nothing() -> None:
    return None


class Rooms:
    """Where the keys and values of some layers and one call go. The layers lie one after another in a memory
    and show the same tokens of it."""

    def __init__(
        self, layers: Sequence[Any], memory: Memory, first: int, begin: int, end: int, columns: int
    ) -> None:
        self.layers, self.memory, self.first = layers, memory, first
        self.begin, self.end, self.columns = begin, end, columns

    @property
    def past(self) -> int:
        return self.end - self.begin

    @property
    def strides(self) -> tuple[int, int, int]:
        """From one sequence, head and token to the next, in numbers."""
        _, _, batch, head, token, _ = self.memory.tensor.stride()
        return batch, head, token

    @property
    def number(self) -> int:
        return NUMBERS[self.memory.tensor.dtype]

    def addresses(self) -> tuple[int, ...]:
        """Of each layer's keys and values: of the first token that is shown."""
        of_layer, of_half, *_, of_token, _ = self.memory.bytes
        first = self.memory.address + self.first * of_layer + self.begin * of_token
        places = range(first, first + len(self.layers) * of_layer, of_layer)
        return tuple([address for place in places for address in (place, place + of_half)])

    def clear(self) -> None:
        """What padding leaves unwritten is 0: other code multiplies it with 0."""
        layers = slice(self.first, self.first + len(self.layers))
        self.memory.tensor[layers, :, :, :, self.end : self.end + self.columns] = 0

    def keep(self) -> None:
        """Show the tokens of the call in the cache."""
        end, last = self.end + self.columns, self.first + len(self.layers)
        self.memory.ends[self.first : last] = [end] * len(self.layers)
        shown: dict[int, Sequence[torch.Tensor]] = {}  # keys and values of all layers, by the first token
        for number, layer in enumerate(self.layers):
            window = _window(layer)
            begin = self.begin if window < 0 else max(self.begin, end - window)
            if begin not in shown:
                shown[begin] = (
                    self.memory.tensor[self.first : last, :, :, :, begin:end].flatten(0, 1).unbind()
                )
            keys, values = shown[begin][2 * number : 2 * number + 2]
            hold(layer, keys, values)
            layer.__dict__[SHOWN] = Shown(self.memory, self.first + number, begin, end, keys, values)
            if window >= 0:
                layer.cumulative_length += self.columns


def _window(layer: Any) -> int:
    """How many tokens the cache's layer keeps; -1: all."""
    return layer.sliding_window - 1 if layer.is_sliding else -1


def new_cache() -> Any:
    """For a call without one."""
    return cache_classes()[0]()


def problem(cache: Any, index: int) -> str:
    """Why the kernels cannot use this cache for the layer of this index; "" where they can."""
    whole, plain, sliding = cache_classes()
    if type(cache) is not whole:
        return f"the cache is a {type(cache).__name__}"
    if cache.offloading:
        return "the cache is offloaded"
    layer = layer_of(cache, index)
    if stock_class(layer) not in (plain, sliding):
        return f"the cache's layer is a {type(layer).__name__}"
    if layer.is_sliding and layer.record_past:
        return "the cache records what lies before its window"
    return ""


def tokens_in(cache: Any, index: int) -> int:
    """How many tokens the cache's layer shows."""
    keys, _ = held(layer_of(cache, index))
    return 0 if keys is None or keys.numel() == 0 else int(keys.shape[2])


def layer_of(cache: Any, index: int) -> Any:
    """The cache's layer of this index, which is made where there is none yet."""
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= index:
            cache.layers.append(cache.layer_class_to_replicate())
    return cache.layers[index]


def together_problem(cache: Any, indices: Sequence[int]) -> str:
    """Why these layers of a cache cannot be given room together; "" where they can."""
    layers = [layer_of(cache, index) for index in indices]
    if _follow(layers):
        return ""
    if len({tokens_in(cache, index) for index in indices}) > 1:
        return "the layers of the cache differ"
    return next(filter(None, (problem(cache, index) for index in indices)), "")


def make_rooms(
    cache: Any, indices: Sequence[int], shape: tuple[int, int, int, int], dtype: torch.dtype
) -> Rooms:
    """As hfaccel.engine.layers.caches.make_rooms."""
    layers = [layer_of(cache, index) for index in indices]
    first: Shown | None = layers[0].__dict__.get(SHOWN)
    if first is not None and _has_room(first, shape, dtype) and _follow(layers):
        return Rooms(layers, first.memory, first.number, first.begin, first.end, shape[2])
    past = tokens_in(cache, indices[0])
    memory = _grown(layers, past, shape, dtype)
    return Rooms(layers, memory, 0, 0, past, shape[2])


def _has_room(shown: Shown, shape: tuple[int, int, int, int], dtype: torch.dtype) -> bool:
    batch, heads, columns, size = shape
    memory = shown.memory.tensor
    _, _, *of_layer, tokens, row = memory.shape
    fits = (*of_layer, row) == (batch, heads, row_size(size, dtype))
    return memory.dtype is dtype and fits and shown.end + columns <= tokens


def _follow(layers: Sequence[Any]) -> bool:
    """Whether the layers show, one after another, the same tokens of one memory."""
    first: Shown | None = layers[0].__dict__.get(SHOWN)
    if first is None:
        return False
    for number, layer in enumerate(layers, first.number):
        shown: Shown | None = layer.__dict__.get(SHOWN)
        if shown is None or shown.memory is not first.memory or shown.number != number:
            return False
        if shown.begin != first.begin or shown.end != first.end or not shown.is_last(layer):
            return False
    return True


def _grown(layers: Sequence[Any], past: int, shape: Sequence[int], dtype: torch.dtype) -> Memory:
    batch, heads, columns, size = shape
    tokens = -(-max(past + columns + LEAST, 2 * past) // LEAST) * LEAST
    with torch.inference_mode(False):
        tensor = torch.empty((len(layers), 2, batch, heads, tokens, row_size(size, dtype)), dtype=dtype)
        like = torch.empty((batch, heads, 0, size), dtype=torch.float32 if dtype is torch.int8 else dtype)
    with torch.no_grad():
        for new, layer in zip(tensor, layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(like, like)
            _copy(layer, new, (batch, heads, past, size))
    return Memory(tensor)


def _copy(layer: Any, new: torch.Tensor, shape: tuple[int, int, int, int]) -> None:
    past = shape[2]
    if not past:
        return
    for half, numbers in zip(new, held(layer), strict=True):
        rows = _as_stored(numbers, layer.dtype, new.dtype)
        expected = (*shape[:3], new.shape[-1])
        if tuple(rows.shape) != expected:
            raise ValueError(f"a cache must hold keys of the shape {expected}, but has {tuple(rows.shape)}")
        half[:, :, :past] = rows


def _as_stored(numbers: torch.Tensor, shown: torch.dtype, stored: torch.dtype) -> torch.Tensor:
    """Floats or bytes of a cache's layer, as they go into memory of this type."""
    if numbers.dtype is torch.int8 and stored is not torch.int8:
        return widened(numbers, shown)
    return narrowed(numbers) if stored is torch.int8 and numbers.dtype is not torch.int8 else numbers

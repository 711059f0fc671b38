"""Room for the keys and values of decoder layers, in which they grow without being copied.

transformers appends to a cache by torch.cat, which copies all of it for each token and layer. Here the layers
of a cache lie in larger memory, and the next tokens are written behind them. Whoever changes a cache (by
cropping, repeating or appending) puts other tensors there; the next call copies these into new room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hfaccel.engine.kernels import NUMBERS
from hfaccel.engine.layers.cache_in_bytes import narrowed, row_size, widened
from hfaccel.engine.layers.roomed import (
    Extent,
    Memory,
    Numbers,
    Place,
    enter,
    held,
    place_of,
    stock_class,
    tokens_of,
)
from hfaccel.upstream.of_transformers import cache_classes

LEAST = 64  # tokens


class Rooms:
    """Where the keys and values of some layers and one call go. The layers lie one after another in a memory
    and show the same tokens of it."""

    def __init__(
        self,
        layers: Sequence[Any],
        memory: Memory,
        first: int,
        extent: Extent,
        columns: int,
        moves: bool = False,
    ) -> None:
        """`moves`: all layers have this extent, and keep what it shows."""
        self.layers, self.memory, self.first, self.columns = layers, memory, first, columns
        self.begin, self.end, self._moved = extent.begin, extent.end, extent if moves else None

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
        return self.memory.addresses(self.first, len(self.layers), self.begin)

    def clear(self) -> None:
        """What padding leaves unwritten is 0: other code multiplies it with 0."""
        layers = slice(self.first, self.first + len(self.layers))
        self.memory.tensor[layers, :, :, :, self.end : self.end + self.columns] = 0

    def keep(self) -> None:
        """The tokens of the call are in the cache."""
        self.memory.writes += 1
        end = self.end + self.columns
        if self._moved is not None:
            self._moved.end = end
            return
        extents: dict[int, Extent] = {}
        for number, layer in enumerate(self.layers, self.first):
            window = _window(layer)
            begin = self.begin if window < 0 else max(self.begin, end - window)
            self._enter(layer, number, extents.setdefault(begin, Extent(begin, end)))
            if window >= 0:
                layer.cumulative_length += self.columns

    def _enter(self, layer: Any, number: int, extent: Extent) -> None:
        place = place_of(layer)
        if place is None or place.memory is not self.memory:
            enter(layer, Place(self.memory, number, extent))
        else:
            place.extent = extent


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
    return tokens_of(layer_of(cache, index))


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
    cache: Any, indices: Sequence[int], shape: tuple[int, int, int, int], numbers: Numbers
) -> Rooms:
    """As hfaccel.engine.layers.caches.make_rooms."""
    following = follow_on(cache, indices, shape, numbers)
    if following is not None:
        return following
    layers = [layer_of(cache, index) for index in indices]
    past = tokens_in(cache, indices[0])
    return Rooms(layers, _grown(layers, past, shape, numbers), 0, Extent(0, past), shape[2])


def follow_on(
    cache: Any, indices: Sequence[int], shape: tuple[int, int, int, int], numbers: Numbers
) -> Rooms | None:
    """Room behind what these layers show, if they lie together in a memory that has some."""
    layers = [layer_of(cache, index) for index in indices]
    first = place_of(layers[0])
    if first is None or not _has_room(first, shape, numbers) or not _follow(layers):
        return None
    together = len(layers) == len(first.memory.tensor)  # or others would move on that are not computed
    moves = together and not any(layer.is_sliding for layer in layers)
    return Rooms(layers, first.memory, first.number, first.extent, shape[2], moves)


def _has_room(place: Place, shape: tuple[int, int, int, int], numbers: Numbers) -> bool:
    batch, heads, columns, size = shape
    memory = place.memory.tensor
    _, _, *of_layer, tokens, row = memory.shape
    fits = (*of_layer, row) == (batch, heads, row_size(size, numbers.stored))
    return place.memory.numbers == numbers and fits and place.end + columns <= tokens


def _follow(layers: Sequence[Any]) -> bool:
    """Whether the layers show, one after another, the same tokens of one memory. From then on they have their
    extent in common."""
    first = place_of(layers[0])
    if first is None:
        return False
    memory, extent = first.memory, first.extent
    for number, layer in enumerate(layers, first.number):
        place = place_of(layer)
        if place is None or place.memory is not memory or place.number != number:
            return False
        if layer.is_sliding and layer.record_past:
            return False
        if place.extent is not extent:
            if (place.begin, place.end) != (extent.begin, extent.end):
                return False
            place.extent = extent
    return True


def _grown(layers: Sequence[Any], past: int, shape: Sequence[int], numbers: Numbers) -> Memory:
    batch, heads, columns, size = shape
    tokens = -(-max(past + columns + LEAST, 2 * past) // LEAST) * LEAST
    with torch.inference_mode(False):
        row = row_size(size, numbers.stored)
        tensor = torch.empty((len(layers), 2, batch, heads, tokens, row), dtype=numbers.stored)
        like = torch.empty((batch, heads, 0, size), dtype=numbers.shown)
    with torch.no_grad():
        for new, layer in zip(tensor, layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(like, like)
            _copy(layer, new, (batch, heads, past, size))
    return Memory(tensor, numbers)


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

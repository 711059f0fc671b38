"""Layers of transformers' cache whose keys and values lie in a memory with room for more.

transformers appends to the keys and values of a layer by torch.cat. A layer in a memory has another class, to
which they are properties: a program that reads them is shown the tokens, and a program that sets them makes
the layer an ordinary one again. Nobody writes to what a program was shown.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch

from hfaccel.engine.layers.cache_in_bytes import widened
from hfaccel.replacement import PREFIX
from hfaccel.upstream.of_transformers import cache_classes

PLACE = PREFIX + "place"  # attribute of a cache's layer: where in which memory it is


class Numbers(NamedTuple):
    """How keys and values are stored, and as what programs are shown them: as stock would have them."""

    stored: torch.dtype
    shown: torch.dtype


class Memory:
    """(layers, 2, batch, heads, tokens, head size): keys and values. In bytes, a factor is behind the numbers
    of a head."""

    def __init__(self, tensor: torch.Tensor, numbers: Numbers) -> None:
        self.tensor, self.numbers = tensor, numbers
        self.address = tensor.data_ptr()
        self.bytes = [stride * tensor.element_size() for stride in tensor.stride()]
        self.writes = 0  # of the kernels
        self._addresses: dict[tuple[int, int, int], tuple[int, ...]] = {}
        self.reordered: tuple[object, Memory] | None = None  # by which order, and what that gave

    def addresses(self, first: int, count: int, begin: int) -> tuple[int, ...]:
        """Of the keys and values of `count` layers from `first` on: of the token `begin`."""
        key = first, count, begin
        if key not in self._addresses:
            of_layer, of_half, *_, of_token, _ = self.bytes
            place = self.address + first * of_layer + begin * of_token
            places = range(place, place + count * of_layer, of_layer)
            self._addresses = {key: tuple([each for place in places for each in (place, place + of_half)])}
        return self._addresses[key]

    def in_order(self, order: torch.Tensor, end: int) -> Memory:
        """The texts in this order, in a memory of its own: made once for all layers that end alike."""
        sources = order.tolist()
        if sources == list(range(self.tensor.shape[2])):
            return self
        state = sources, end, self.writes, self.tensor._version
        if self.reordered is None or self.reordered[0] != state:
            self.reordered = state, self._in_order(sources, end)
        return self.reordered[1]

    def _in_order(self, sources: list[int], end: int) -> Memory:
        old = self.tensor
        with torch.inference_mode(False), torch.no_grad():
            tensor = torch.empty((*old.shape[:2], len(sources), *old.shape[3:]), dtype=old.dtype)
            for row, source in enumerate(sources):
                tensor[:, :, row, :, :end] = old[:, :, source, :, :end]
        return Memory(tensor, self.numbers)


class Extent:
    """The tokens of a memory from `begin` on, up to `end`. Layers that go on together have one in common,
    which a call moves on at once."""

    __slots__ = ("begin", "end")

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end


class Place:
    """A layer's place in a memory, and which tokens are its own."""

    __slots__ = ("extent", "is_shown", "memory", "number")

    def __init__(self, memory: Memory, number: int, extent: Extent) -> None:
        self.memory, self.number, self.extent = memory, number, extent
        self.is_shown = False  # a program may hold what lies there

    @property
    def begin(self) -> int:
        return self.extent.begin

    @property
    def end(self) -> int:
        return self.extent.end

    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.memory.tensor[self.number, :, :, :, self.begin : self.end].unbind()
        return keys, values

    def show(self, half: int) -> torch.Tensor:
        """Keys (0) or values (1), for a program."""
        self.is_shown = True
        rows, shown = self.rows()[half], self.memory.numbers.shown
        return widened(rows, shown) if rows.dtype is torch.int8 else rows.to(shown)


def place_of(layer: Any) -> Place | None:
    place: Place | None = layer.__dict__.get(PLACE)
    return place


def held(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a cache's layer holds, in bytes where it does so."""
    place = place_of(layer)
    return (layer.keys, layer.values) if place is None else place.rows()


def tokens_of(layer: Any) -> int:
    """How many tokens the layer shows."""
    place = place_of(layer)
    if place is not None:
        return place.end - place.begin
    return 0 if layer.keys is None or layer.keys.numel() == 0 else int(layer.keys.shape[2])


def stock_class(layer: Any) -> type[Any]:
    """The layer's class; of one in a memory, that of transformers."""
    stock: type[Any] = getattr(type(layer), "hfaccel_stock", type(layer))
    return stock


def enter(layer: Any, place: Place) -> None:
    """From now on the layer is there."""
    if place_of(layer) is None:
        for name in ("keys", "values"):
            layer.__dict__.pop(name, None)
        layer.__class__ = _classes()[layer.is_sliding]
    layer.__dict__[PLACE] = place


def leave(layer: Any) -> None:
    """From now on the layer is an ordinary one."""
    place: Place = layer.__dict__.pop(PLACE)
    layer.__class__ = stock_class(layer)
    layer.keys, layer.values = place.show(0), place.show(1)


@cache
def _classes() -> tuple[type[Any], type[Any]]:
    """Of layers with all tokens, and with those in a window."""
    _, plain, sliding = cache_classes()
    return _roomed(plain), _roomed(sliding)


def as_ordinary(layer: Any) -> tuple[object, ...]:
    """For copying and pickling: an ordinary layer, with tensors of its own in the place of views of the
    memory of all layers."""
    own = {name: value for name, value in layer.__dict__.items() if not name.startswith(PREFIX)}
    halves = {"keys": layer.keys, "values": layer.values}
    own |= {name: None if half is None else half.clone() for name, half in halves.items()}
    return _empty, (layer.is_sliding,), own


def _empty(is_sliding: bool) -> Any:
    return object.__new__(cache_classes()[1 + is_sliding])


def _half(name: str, number: int) -> property:
    def read(layer: Any) -> torch.Tensor:
        place: Place = layer.__dict__[PLACE]
        return place.show(number)

    def write(layer: Any, tensor: torch.Tensor | None) -> None:
        leave(layer)
        setattr(layer, name, tensor)

    return property(read, write)


def _roomed(stock: Any) -> type[Any]:
    class Roomed(stock):  # type: ignore[misc]  # which class that is shows at run time
        hfaccel_stock = stock

        keys = _half("keys", 0)
        values = _half("values", 1)

        def get_seq_length(self) -> int:
            return int(super().get_seq_length()) if self.is_sliding else tokens_of(self)

        def reorder_cache(self, beam_idx: torch.Tensor) -> None:
            place: Place = self.__dict__[PLACE]
            place.memory = place.memory.in_order(beam_idx, place.end)

        def crop(self, tokens_to_remove: int) -> None:
            place: Place = self.__dict__[PLACE]
            if self.is_sliding or place.is_shown or tokens_to_remove >= 0:
                super().crop(tokens_to_remove)
            else:
                end = max(place.begin, place.end + tokens_to_remove)
                place.extent = Extent(place.begin, end)

        def __reduce__(self) -> tuple[object, ...]:
            return as_ordinary(self)

    Roomed.__name__ = Roomed.__qualname__ = stock.__name__
    return Roomed

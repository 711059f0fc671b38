"""A cache for many requests at once: each has a slot of one memory, and as many tokens there as it has.

A call computes rows of several slots, one piece after another in an input of the shape (1, rows). The kernels
read from the cache where each row belongs, so no mask is read, nothing is padded and nothing is copied. Only
the kernels can do that: a layer that runs its own forward raises SlotsRefused.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch

from hfaccel.engine.calls.ragged import Sequences
from hfaccel.engine.kernels import NUMBERS, kernels
from hfaccel.engine.layers.cache_in_bytes import row_size
from hfaccel.errors import HfaccelError
from hfaccel.native import NativePast

MAP_NORESERVE = 0x4000  # of Linux; Python 3.11 has no name for it


class SlotsRefused(HfaccelError):
    """A layer cannot compute with slots."""


class Piece(NamedTuple):
    """Rows of a call that follow one another in a slot."""

    slot: int
    past: int  # tokens before them
    rows: int


class Keys(NamedTuple):
    """What keys and values are made of; those of a layer have one kind."""

    heads: int
    size: int
    dtype: torch.dtype


class Place(NamedTuple):
    """Of layers that run together."""

    memory: torch.Tensor  # (layers, 2, slots, heads, tokens, head size), of these layers and perhaps of more
    addresses: tuple[int, ...]  # of each layer's keys and values


def _reserved(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Room of which the system gives pages as they are written, and for which it need not have them all."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    try:
        room = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
    except (OSError, ValueError, OverflowError) as error:
        raise SlotsRefused(f"there is no room for slots of the shape {tuple(shape)} ({error})") from None
    with torch.inference_mode(False):
        return torch.frombuffer(room, dtype=torch.uint8).view(dtype).view(*shape)


class Slots:
    """Keys and values of `count` slots of up to `tokens` tokens, in the place of a model's cache.

    Pass `mask` as the model's attention mask and the rows' places as its position ids. Memory is taken when
    the first call needs it; the system gives pages as they are written, so room that nobody fills costs
    nothing."""

    is_compileable = False  # transformers asks

    def __init__(self, count: int, tokens: int) -> None:
        self.count, self.tokens = count, tokens
        self.mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)  # transformers passes one of four axes on
        self.written: set[int] = set()  # layers
        self._memories: list[torch.Tensor] = []
        self._of_layers: dict[tuple[int, ...], Place] = {}
        self._pieces: Sequence[Piece] = ()
        self._sequences: dict[int, Sequences] = {}  # by window

    def begin(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """Say what the next call computes. Returns the position ids of its rows, (1, rows)."""
        for slot, past, rows in pieces:
            if not 0 <= slot < self.count or past < 0 or rows < 1 or past + rows > self.tokens:
                raise ValueError(
                    f"a piece must lie within {self.count} slots of {self.tokens} tokens, but has "
                    f"slot={slot}, past={past}, rows={rows}"
                )
        self._pieces = pieces
        self._rows = sum(rows for _, _, rows in pieces)
        self._past, self._longest = max(piece.past for piece in pieces), max(piece.rows for piece in pieces)
        self._sequences = {}
        places = [(slot, past + row) for slot, past, rows in pieces for row in range(rows)]
        self._places = torch.tensor(places, dtype=torch.int32)
        return self._places[:, 1].long()[None]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give the target the first tokens of the source."""
        for memory in self._memories:
            memory[:, :, target, :, :tokens] = memory[:, :, source, :, :tokens]

    # What a layer asks

    def problem(self, shape: Sequence[int]) -> str:
        """Why hidden states of this shape are not the rows of this call; "" where they are."""
        if tuple(shape[:2]) == (1, self._rows):
            return ""
        return f"the slots have rows of the shape {(1, self._rows)}, but got {tuple(shape[:2])}"

    def sequences(self, window: int) -> Sequences:
        """Of this call, for layers with this window."""
        found = self._sequences.get(window)
        if found is None:
            lengths = torch.tensor([piece.rows for piece in self._pieces], dtype=torch.int32)
            firsts = lengths.cumsum(0, dtype=torch.int32) - lengths
            found = Sequences(self._rows, len(self._pieces), firsts, lengths, window=window)
            self._sequences[window] = found
        return found

    def room(self, layers: tuple[int, ...], keys: Keys) -> tuple[NativePast, tuple[int, ...]]:
        """What the kernels need to know of the past of these layers, which run together."""
        place = self._of_layers.get(layers) or self._place(layers, keys)
        memory = place.memory
        if memory.dtype is not keys.dtype:
            raise SlotsRefused(f"the slots hold {memory.dtype}, but a layer has keys of {keys.dtype}")
        self.written.update(layers)
        _, _, of_slot, of_head, of_token, _ = memory.stride()
        strides, number = (of_slot, of_head, of_token), NUMBERS[memory.dtype]
        places = self._places.data_ptr()
        past = kernels().Past(self._longest, self._past, *strides, number, 0, places)
        return past, place.addresses

    def _place(self, layers: tuple[int, ...], keys: Keys) -> Place:
        """Of layers that did not run in this company before."""
        for known, place in [*self._of_layers.items()]:
            if set(layers) <= set(known):
                return self._keep(layers, place.memory, [known.index(layer) for layer in layers])
            if not set(known).isdisjoint(layers):
                raise SlotsRefused(f"layers {known} ran together before, but now {layers} do")
        shape = len(layers), 2, self.count, keys.heads, self.tokens, row_size(keys.size, keys.dtype)
        memory = _reserved(shape, keys.dtype)
        self._memories.append(memory)
        return self._keep(layers, memory, range(len(layers)))

    def _keep(self, layers: tuple[int, ...], memory: torch.Tensor, numbers: Sequence[int]) -> Place:
        addresses = tuple(half.data_ptr() for number in numbers for half in memory[number])
        place = self._of_layers[layers] = Place(memory, addresses)
        return place

    # What transformers asks of a cache

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._past

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._past

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._past + query_length, 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *more: object) -> NoReturn:
        raise SlotsRefused(
            f"only the kernels can compute with slots, but layer {layer_idx} runs its own forward; "
            "hfaccel.report(model).stock_calls has the reason"
        )

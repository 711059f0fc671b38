"""One more token of each text: a language model's logits in one call of the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from hfaccel.engine.calls.integers import are_integers, count
from hfaccel.engine.calls.ragged import whole
from hfaccel.engine.calls.snapshot import Held, Snapshot
from hfaccel.engine.kernels import kernels
from hfaccel.engine.layers.decoder import CACHE, keys_of, past_of
from hfaccel.engine.layers.native_layer import NativeLayer
from hfaccel.engine.layers.parts import layer_index
from hfaccel.engine.layers.roomed import Numbers
from hfaccel.engine.layers.rooms import follow_on, tokens_in
from hfaccel.engine.layers.slots import Keys
from hfaccel.engine.layers.stack import Together
from hfaccel.engine.models.around import Around
from hfaccel.engine.models.token_path import Positions, TokenPath
from hfaccel.engine.norms import EPSILONS, native_norm
from hfaccel.engine.replacements import Keywords
from hfaccel.engine.weights.linear import fits, float32
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.upstream.of_transformers import cache_classes

IDS, MASK, POSITIONS = "input_ids", "attention_mask", "position_ids"
TENSORS = frozenset((IDS, MASK, POSITIONS, CACHE))
FLAGS = ("use_cache", "return_dict")  # which generate() sets


def is_one_token(kwargs: Keywords) -> bool:
    """Whether the call has one token of each text."""
    ids = kwargs.get(IDS)
    return isinstance(ids, torch.Tensor) and ids.dim() == 2 and ids.shape[1] == 1


class _Asked(NamedTuple):
    ids: torch.Tensor  # (batch, 1)
    cache: Any
    mask: torch.Tensor | None
    positions: torch.Tensor | None

    def is_plain(self, past: int) -> bool:
        """Whether each token follows `past` others and sees them all."""
        mask, positions, batch = self.mask, self.positions, len(self.ids)
        if mask is not None and (mask.shape != (batch, past + 1) or count(mask, 0)):
            return False
        if positions is None:
            return True
        return positions.shape in ((batch, 1), (1, 1)) and count(positions, past) == positions.numel()


def _asked(kwargs: Keywords) -> _Asked | None:
    """What a call asks for; None where that is more than one token of each text."""
    if not all(_is_ordinary(name, value) for name, value in kwargs.items()):
        return None
    asked = _Asked(kwargs[IDS], kwargs.get(CACHE), kwargs.get(MASK), kwargs.get(POSITIONS))
    if type(asked.cache) is not cache_classes()[0] or asked.cache.offloading or not are_integers(asked.ids):
        return None
    return asked if all(each is None or are_integers(each) for each in asked[2:]) else None


def _is_ordinary(name: str, value: object) -> bool:
    """Whether the argument is one of the tensors, or asks for nothing beside logits and the cache."""
    if name in TENSORS or value is None:
        return True
    if name == "logits_to_keep":
        return type(value) is int and value < 2
    return value is (name in FLAGS)


class _Tail:
    """The kernels' objects for the norm and the head, and whether these are still theirs."""

    def __init__(self, path: TokenPath) -> None:
        self._kept: list[torch.Tensor] = []
        norm, head = path.norm, path.head
        self.norm = native_norm(norm, self._float32)
        self.matrix = head.weight.matrix(self._float32(head.bias, 0.0))
        held: list[Held] = [(vars(norm), name, vars(norm).get(name)) for name in EPSILONS]
        held.append((vars(head.weight), "memory", head.weight.memory))
        own = [(each._parameters, *item) for each in (norm, head) for item in each._parameters.items()]
        vectors = (value for *_, value in own if value is not None and value is not head.weight)
        self._unchanged = Snapshot([*held, *own], (), vectors)

    def holds(self) -> bool:
        return self._unchanged.holds()

    def _float32(self, vector: torch.Tensor | None, plus: float) -> torch.Tensor | None:
        own = float32(vector)
        if own is None:
            return None
        self._kept.append(own + plus if plus else own)
        return self._kept[-1]


class _Layers(NamedTuple):
    """All layers as they run together."""

    natives: Sequence[NativeLayer]
    native: tuple[object, ...]
    indices: list[int]
    keys: Keys


class NextToken:
    """Computes what the model's forward would for one more token of each text."""

    def __init__(self, model: Any, path: TokenPath, like: Any) -> None:
        """`like`: a result of the model's forward."""
        self.path, self.around = path, Around(model, path.layers)
        self.result, self.dtype = type(like), like.logits.dtype
        self.rows = int(path.head.weight.packing.rows)
        self._tail: _Tail | None = None
        self._positions: Positions | None = None
        self._layers: _Layers | None = None

    def __call__(self, kwargs: Keywords) -> Any:
        """The result; None if the model's own forward has to compute it."""
        asked = _asked(kwargs)
        if asked is None or not self.around.holds():
            return None
        past = tokens_in(asked.cache, 0)
        if not past or not asked.is_plain(past):
            return None
        embedded: torch.Tensor = self.path.embedding.forward(asked.ids)
        layers, tail = self._together(embedded), self._present_tail()
        if layers is None or tail is None or embedded.dtype is not self.dtype:
            return None
        heads, size, stored = layers.keys
        shape, numbers = (len(embedded), heads, 1, size), Numbers(stored, embedded.dtype)
        rooms = follow_on(asked.cache, layers.indices, shape, numbers)
        if rooms is None:
            return None
        logits = torch.empty((len(embedded), 1, self.rows), dtype=self.dtype)
        result = self.result(logits=logits, past_key_values=asked.cache)
        rows = embedded.float().contiguous()
        output = torch.empty_like(rows)
        kernels().run_layers(
            layers.native,
            torch.get_num_threads(),
            rows.data_ptr(),
            output.data_ptr(),
            whole(len(rows), 1).native,
            None,
            self._present_positions(embedded.dtype).at(past),
            None,
            past_of(rooms, 1),
            rooms.addresses(),
            None,
            (),
            (tail.norm, tail.matrix, logits.data_ptr(), self.dtype is torch.bfloat16),
        )
        rooms.keep()
        return result

    def _together(self, hidden: torch.Tensor) -> _Layers | None:
        natives = Together(self.path.layers, self.path.decoder.__dict__).natives(hidden)
        if not natives:
            return None
        if self._layers is None or self._layers.natives is not natives:
            indices = [layer_index(each.attention) for each in natives]
            native = tuple(each.native for each in natives)
            self._layers = _Layers(natives, native, indices, keys_of(natives[0]))
        return self._layers

    def _present_tail(self) -> _Tail | None:
        """None where the head's weight is packed no more, or its bias is of another kind than float."""
        if self._tail is None or not self._tail.holds():
            head = self.path.head
            packed = isinstance(head.weight, PackedWeight) and fits(head.bias)
            self._tail = _Tail(self.path) if packed else None
        return self._tail

    def _present_positions(self, dtype: torch.dtype) -> Positions:
        if self._positions is None or self._positions.dtype is not dtype or not self._positions.holds():
            self._positions = Positions(self.path.rotary, dtype)
        return self._positions

"""One call of fused decoder layers: tokens that follow others, whose keys and values lie in a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.calls.followed import Followed, read_followed, seen_by
from hfaccel.engine.kernels import kernels
from hfaccel.engine.layers.caches import cache_problem, make_rooms, places_in, together_problem, tokens_in
from hfaccel.engine.layers.call import HIDDEN, Call, Mask, Sample, attentions_problem
from hfaccel.engine.layers.mixtures import logits_problem
from hfaccel.engine.layers.native_layer import NativeLayer
from hfaccel.engine.layers.parts import Parts, copies, head_size, key_heads, layer_index, window
from hfaccel.engine.layers.roomed import Numbers
from hfaccel.engine.layers.rooms import Rooms, new_cache
from hfaccel.engine.layers.slots import Keys, Slots
from hfaccel.engine.layers.static_rooms import StaticRooms
from hfaccel.engine.replacements import Arguments, Keywords
from hfaccel.native import NativePast, NativeRotary

CACHE = "past_key_values"
# Arguments that a layer hands on to attention, which leaves them unused. generate() passes its tokenizer.
HANDED_ON = frozenset({"position_ids", "cache_position", "use_cache", "output_attentions", "return_dict"})
HANDED_ON |= {"tokenizer"}


class Filled:
    """In a sample: a cache with this many tokens, made anew for each call, which adds its own."""

    TOKENS: ClassVar[int] = 5

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def make(self, layer: nn.Module, parts: Parts, batch: int) -> Any:
        attention = layer.get_submodule(parts.attention)
        size = head_size(attention) or 1
        shape = batch, key_heads(parts, layer), self.tokens, size
        generator = torch.Generator().manual_seed(0)
        cache = new_cache()
        if self.tokens:
            keys_values = (torch.randn(shape, generator=generator) for _ in range(2))
            repeated = (each.repeat_interleave(copies(parts, layer), 1) for each in keys_values)
            cache.update(*repeated, layer_index(attention))
        return cache


class DecoderCall(Call):
    """Of a layer that takes hidden states, a causal mask, perhaps a cache and rotary positions, and gives
    hidden states."""

    __slots__ = ("cache", "followed", "given", "past", "places", "slots", "turns")
    unpads: ClassVar[bool] = False  # unless asked for: losses are computed from rows of padding too
    follows: ClassVar[bool] = True
    cache_name: ClassVar[str] = CACHE  # of the argument
    ordered: ClassVar[tuple[str, ...]] = ()  # names of arguments that are passed by position
    own_window: ClassVar[bool] = False  # the layer hides what is beyond its window, and not the mask
    gives_pair: ClassVar[bool] = False  # the layer returns hidden states and attention weights
    needs_ids: ClassVar[bool] = False  # the model computes nothing from embeddings alone

    def __init__(self, layer: NativeLayer) -> None:
        super().__init__(layer)
        self.cache: Any = None
        self.slots: Slots | None = None  # in the place of a cache
        self.given = torch.float32  # the type of the hidden states
        self.past = 0  # tokens in the cache
        self.places = 0  # of the cache that a mask has; 0: as many as there are tokens
        self.followed: Followed
        self.turns: Sequence[DecoderCall] = ()  # of each layer, the call that has its rotary positions

    @property
    def numbers(self) -> Numbers:
        """Of keys and values in a cache."""
        return Numbers(self.layer.cache_type, self.given)

    def read(self, hidden: torch.Tensor, args: Arguments, kwargs: Keywords, unpad: bool) -> str:
        self.given = hidden.dtype
        if len(args) > len(self.ordered):
            return "arguments were passed by position"
        return super().read(hidden, (), {**dict(zip(self.ordered, args, strict=False)), **kwargs}, unpad)

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        if name == "output_attentions" and self.gives_pair:
            return "attentions are wanted"
        if name == self.cache_name and isinstance(value, Slots):
            self.slots = value
            return ""
        if name == self.cache_name:
            self.cache = value
            return cache_problem(value, layer_index(self.layer.attention), self.numbers)
        if name in HANDED_ON:
            return ""
        return super().take_argument(hidden, name, value)

    def complete(self, hidden: torch.Tensor) -> str:
        if self.cache is not None:
            index = layer_index(self.layer.attention)
            self.past, self.places = tokens_in(self.cache, index), places_in(self.cache, index)
        return scores_problem((self.layer,)) or super().complete(hidden)

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        if self.slots is not None:
            self.sequences = self.slots.sequences(self.layer.window)
            return self.slots.problem(hidden.shape)
        batch, columns, _ = hidden.shape
        shown = -1 if self.own_window else self.layer.window
        wanted = batch, columns, self.past, shown, unpad, self.places
        if mask is None:
            found = read_followed(None, *wanted)
        else:
            found = self.layer.seen.followed.get(mask, wanted, lambda: read_followed(mask, *wanted))
        if isinstance(found, str):
            return found
        self.followed, self.sequences = found, found.sequences
        if self.own_window:
            self.sequences = replace(self.sequences, window=self.layer.window)
        return ""

    def let_padding_see_all(self, unpad: bool) -> str:
        """Where a mask is added to scores, those of padding are all the lowest number."""
        if unpad or not self.followed.has_padding(self.past):
            return ""
        if self.past:
            return "padding follows other tokens"
        self.sequences = replace(self.sequences, padding_sees_all=2 if self.own_window else 1)
        return ""

    def rotary(self) -> NativeRotary | tuple[NativeRotary | None, ...] | None:
        found = {id(call): call.own_rotary() for call in self.turns}
        return tuple(found[id(call)] for call in self.turns) if found else super().rotary()

    def give(self, result: torch.Tensor) -> object:
        return (result, None) if self.gives_pair else result

    def compute(self, layers: Sequence[NativeLayer], rows: torch.Tensor, output: torch.Tensor) -> None:
        if self.slots is not None:
            indices = tuple(layer_index(layer.attention) for layer in layers)
            self.call_kernels(layers, rows, output, *self.slots.room(indices, keys_of(layers[0])))
            return
        rooms = self._rooms(layers, rows.shape)
        if self.followed.hides_rows:
            output.zero_()
            rooms.clear()
        seen = self.followed.seen
        past = past_of(rooms, rows.shape[1], 0 if seen is None else seen.data_ptr())
        self.call_kernels(layers, rows, output, past, rooms.addresses(), *self.beside(layers, rows.shape[1]))
        rooms.keep()

    def beside(self, layers: Sequence[NativeLayer], columns: int) -> tuple[Any, ...]:
        """What the kernels need besides the past, for this number of columns."""
        return ()

    def together_problem(self, layers: Sequence[NativeLayer]) -> str:
        if problem := scores_problem(layers):
            return problem
        if self.cache is None:
            return ""
        indices = [layer_index(layer.attention) for layer in layers]
        return together_problem(self.cache, indices, self.numbers)

    def _rooms(self, layers: Sequence[NativeLayer], shape: Sequence[int]) -> Rooms | StaticRooms:
        """For the tokens of this call."""
        heads, size, _ = keys_of(layers[0])
        cache = new_cache() if self.cache is None else self.cache
        indices = [layer_index(layer.attention) for layer in layers]
        return make_rooms(cache, indices, (shape[0], heads, shape[1], size), self.numbers)

    # For the trial of such a layer

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        """The mask hides padding, which here comes before the tokens."""
        batch, length = padding.shape
        wanted = window(layer.get_submodule(parts.attention))
        causal = seen_by(length, 0, wanted).expand(batch, 1, -1, -1)
        hides = causal & ~padding.flip(1)[:, None, None, :]
        _, arguments = Call.sample(layer, parts, padding, generator)
        return [causal if 0 <= wanted < length else None, hides], arguments

    @classmethod
    def variants(cls, layer: nn.Module, parts: Parts, masks: list[Mask]) -> Iterator[tuple[Mask, Keywords]]:
        """With each mask: without a cache, and with an empty one. Then with one that holds tokens."""
        hides = masks[-1]
        assert hides is not None
        for mask in masks:
            yield mask, {}
            yield mask, {cls.cache_name: Filled(0)}
        wanted = -1 if cls.own_window else window(layer.get_submodule(parts.attention))
        seen = seen_by(hides.shape[-1], Filled.TOKENS, wanted)
        yield seen.expand(*hides.shape[:2], -1, -1), {cls.cache_name: Filled(Filled.TOKENS)}

    @classmethod
    def arguments_of(cls, layer: nn.Module, parts: Parts, batch: int, keywords: Keywords) -> Keywords:
        made = keywords.get(cls.cache_name)
        return keywords | ({cls.cache_name: made.make(layer, parts, batch)} if made else {})

    @classmethod
    def result(cls, result: Any, keywords: Keywords) -> object:
        """What the cache holds afterwards belongs to it."""
        result = result[0] if cls.gives_pair else result
        if cls.cache_name not in keywords:
            return result
        last = keywords[cls.cache_name].layers[-1]
        keys, values = (each.float().transpose(1, 2).flatten(2) for each in (last.keys, last.values))
        return result, keys, values

    @staticmethod
    def unread(padding: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(padding)

    @staticmethod
    def empty_cache() -> Any:
        """For the trial of all layers."""
        return new_cache()

    @staticmethod
    def of_model(layer: nn.Module, parts: Parts, hidden: torch.Tensor) -> Keywords:
        """What the model is given besides hidden states in the trial of all its layers."""
        return {}

    @staticmethod
    def handed_on(result: object, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
        """The arguments of the layer after one that was given these, from its result."""
        return args, kwargs


def scores_problem(layers: Sequence[NativeLayer]) -> str:
    """Why layers with mixtures must run their own forward."""
    return logits_problem() if any(layer.parts.experts for layer in layers) else ""


def past_of(rooms: Rooms | StaticRooms, columns: int, seen: int = 0) -> NativePast:
    """The kernels' object for tokens that follow those in the rooms. `seen`: address of what is seen of each
    text; 0: all is."""
    return kernels().Past(columns, rooms.past, *rooms.strides, rooms.number, seen)


def keys_of(layer: NativeLayer) -> Keys:
    size = head_size(layer.attention) or 1
    return Keys(layer.cached_heads, size, layer.cache_type)


def additive(masks: list[Mask]) -> list[Mask]:
    """Masks (batch, 1, length, length) that are added to scores, for those of a DecoderCall's sample."""
    assert masks[-1] is not None
    causal = torch.ones_like(masks[-1]).tril()
    return [torch.where(causal if mask is None else mask, 0.0, HIDDEN) for mask in masks]


class EagerDecoderCall(DecoderCall):
    """Of a layer with eager attention, to which a mask is always passed that is added to the scores."""

    __slots__ = ()
    implementation: ClassVar[str] = "eager"

    def complete(self, hidden: torch.Tensor) -> str:
        return attentions_problem() or super().complete(hidden)

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        if self.slots is not None:
            return super().see(hidden, mask, unpad)
        sees_all = mask is None and hidden.shape[1] == 1 and self.layer.window < 0
        if not sees_all and (mask is None or not mask.is_floating_point()):
            return "no attention mask was passed that is added to the scores"
        if problem := super().see(hidden, mask, unpad):
            return problem
        return self.let_padding_see_all(unpad)

    @classmethod
    def sample(
        cls, layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator
    ) -> Sample:
        masks, arguments = super().sample(layer, parts, padding, generator)
        return additive(masks), arguments

    @classmethod
    def variants(cls, layer: nn.Module, parts: Parts, masks: list[Mask]) -> Iterator[tuple[Mask, Keywords]]:
        for mask, more in super().variants(layer, parts, masks):
            assert mask is not None
            yield mask if mask.is_floating_point() else torch.where(mask, 0.0, HIDDEN), more

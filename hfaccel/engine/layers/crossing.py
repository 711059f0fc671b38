"""One call of fused decoder layers that attend to an encoder's states, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.calls.followed import read_spans
from hfaccel.engine.layers.caches import cache_problem
from hfaccel.engine.layers.call import HIDDEN, MASK, Mask, Sample
from hfaccel.engine.layers.decoder import DecoderCall, EagerDecoderCall, Filled
from hfaccel.engine.layers.encoded import (
    Encoded,
    from_cache,
    from_states,
    is_filled,
    keep,
    length_of,
    pair_problem,
)
from hfaccel.engine.layers.native_layer import NativeLayer
from hfaccel.engine.layers.parts import Parts, head_size, inputs_of
from hfaccel.engine.layers.rooms import new_cache
from hfaccel.engine.replacements import Keywords
from hfaccel.upstream.of_transformers import PAIRS

STATES, STATES_MASK = "encoder_hidden_states", "encoder_attention_mask"  # names of arguments


class FilledPair:
    """In a sample: two caches, the first with some tokens. `after`: the second holds the encoder's."""

    TOKENS: ClassVar[int] = 6  # of the encoder

    def __init__(self, own: Filled, after: bool) -> None:
        self.own, self.after = own, after

    def make(self, layer: nn.Module, parts: Parts, batch: int) -> Any:
        made = Filled(self.TOKENS if self.after else 0)
        return PAIRS.value()(*(each.make(layer, parts, batch) for each in (self.own, made)))


class CrossCall(DecoderCall):
    """Of a layer that takes hidden states, a causal mask, perhaps an encoder's states with a mask of theirs,
    and a pair of caches. Without states the layer attends to its own tokens alone."""

    __slots__ = ("encoded", "pair", "spans", "states", "states_mask")
    ordered: ClassVar[tuple[str, ...]] = (MASK, STATES)

    def __init__(self, layer: NativeLayer) -> None:
        super().__init__(layer)
        self.pair: Any = None
        self.states: torch.Tensor | None = None
        self.states_mask: Mask = None
        self.spans: torch.Tensor | None = None
        self.encoded: Encoded | None = None  # kept until the kernels have read it

    @property
    def index(self) -> int:
        return int(self.layer.attention.layer_idx)

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        if name == STATES:
            self.states = value
            return ""
        if name == STATES_MASK:
            self.states_mask = value
            return ""
        if name == self.cache_name and type(value) is PAIRS.value():
            self.pair, self.cache = value, value.self_attention_cache
            own = cache_problem(self.cache, self.index, self.numbers)
            return own or pair_problem(value, self.index)
        return super().take_argument(hidden, name, value)

    def complete(self, hidden: torch.Tensor) -> str:
        if self.states is not None and (problem := self._states_problem(hidden, self.states)):
            return problem
        return super().complete(hidden)

    def _states_problem(self, hidden: torch.Tensor, states: torch.Tensor) -> str:
        if self.slots is not None or (self.cache is not None and self.pair is None):
            return "there is no cache for the encoder's tokens"
        size = inputs_of(self.layer.of_encoder[0])
        if states.dim() != 3 or states.shape[0] != len(hidden) or states.shape[2] != size:
            return f"the encoder's states have the shape {tuple(states.shape)}"
        filled = is_filled(self.pair, self.index)
        tokens = length_of(self.pair, self.index) if filled else states.shape[1]
        return self._see_states(hidden, tokens) if tokens else "the encoder has no tokens"

    def _see_states(self, hidden: torch.Tensor, tokens: int) -> str:
        mask = self.states_mask
        if mask is None:
            return ""
        wanted = (*hidden.shape[:2], tokens)
        found = self.layer.seen.spans.get(mask, wanted, lambda: read_spans(mask, *wanted))
        if isinstance(found, str):
            return found
        self.spans = found
        return ""

    def together_problem(self, layers: Sequence[NativeLayer]) -> str:
        indices = [layer.attention.layer_idx for layer in layers]
        if self.pair is not None and self.states is not None:
            first = is_filled(self.pair, self.index)
            for index in indices[1:]:
                if problem := pair_problem(self.pair, index):
                    return problem
                if is_filled(self.pair, index) is not first:
                    return "the encoder's cache holds some layers alone"
        return super().together_problem(layers)

    def beside(self, layers: Sequence[NativeLayer], columns: int) -> tuple[Any, ...]:
        if self.states is None:
            return ()
        encoded = self.encoded = self._encoded(layers, self.states)
        return encoded.native(columns, self.spans), encoded.addresses()

    def _encoded(self, layers: Sequence[NativeLayer], states: torch.Tensor) -> Encoded:
        layer = layers[0]
        size = head_size(layer.attention) or 1
        shape, dtype = (len(states), layer.cached_heads, size), layer.attention_type
        indices = [layer.attention.layer_idx for layer in layers]
        if is_filled(self.pair, self.index):
            return from_cache(self.pair, indices, shape, dtype)
        made = from_states(layers, states, shape, dtype)
        if self.pair is not None:
            keep(made, self.pair, indices)
        return made

    # For the trial of such a layer

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        masks, arguments = DecoderCall.sample(layer, parts, padding, generator)
        size = inputs_of(layer.get_submodule(parts.of_encoder[0]))
        arguments[STATES] = torch.randn(len(padding), FilledPair.TOKENS, size, generator=generator)
        return masks, arguments

    @classmethod
    def variants(cls, layer: nn.Module, parts: Parts, masks: list[Mask]) -> Iterator[tuple[Mask, Keywords]]:
        """With the encoder's tokens to be kept, with some of them hidden, and with those that are kept."""
        assert masks[-1] is not None
        shown = torch.ones(len(masks[-1]), 1, 1, FilledPair.TOKENS, dtype=torch.bool)
        shown[-1, ..., 4:] = False
        for mask, more in super().variants(layer, parts, masks):
            own = more.get(cls.cache_name)
            if own is None:
                yield mask, more
                continue
            yield mask, {cls.cache_name: FilledPair(own, after=False)}
            yield mask, {cls.cache_name: FilledPair(own, after=False), STATES_MASK: shown}
            yield mask, {cls.cache_name: FilledPair(own, after=True), STATES_MASK: shown.flip(3)}

    @classmethod
    def result(cls, result: Any, keywords: Keywords) -> object:
        pair = keywords.get(cls.cache_name)
        if pair is None:
            return super().result(result, keywords)
        found = super().result(result, {cls.cache_name: pair.self_attention_cache})
        last = pair.cross_attention_cache.layers[-1]
        return found, last.keys.float(), last.values.float()

    @staticmethod
    def empty_cache() -> Any:
        return PAIRS.value()(new_cache(), new_cache())

    @staticmethod
    def of_model(layer: nn.Module, parts: Parts, hidden: torch.Tensor) -> Keywords:
        size = inputs_of(layer.get_submodule(parts.of_encoder[0]))
        generator = torch.Generator().manual_seed(1)
        states = torch.randn(len(hidden), FilledPair.TOKENS, size, generator=generator)
        return {STATES: states.to(hidden.dtype)}


class EagerCrossCall(EagerDecoderCall, CrossCall):
    """Of a layer with eager attention, to which masks are passed that are added to the scores."""

    __slots__ = ()
    needs_ids: ClassVar[bool] = True  # TrOCR and Speech2Text count positions from them

    @classmethod
    def variants(cls, layer: nn.Module, parts: Parts, masks: list[Mask]) -> Iterator[tuple[Mask, Keywords]]:
        for mask, more in super().variants(layer, parts, masks):
            assert mask is not None
            if STATES_MASK in more:
                shown = torch.where(more[STATES_MASK], 0.0, HIDDEN).expand(-1, -1, mask.shape[2], -1)
                more = {**more, STATES_MASK: shown}
            yield mask, more

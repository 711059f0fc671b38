"""The decoders of T5, mT5 and UMT5, with and without a gate in the feed-forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.layers.call import MASK, Mask
from hfaccel.engine.layers.crossing import STATES, STATES_MASK, CrossCall
from hfaccel.engine.layers.distances import made_row
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.t5 import T5
from hfaccel.engine.layers.native_layer import NativeLayer
from hfaccel.engine.layers.parts import Parts
from hfaccel.engine.replacements import Arguments, Keywords

PASSED, PASSED_CROSS = "position_bias", "encoder_decoder_position_bias"  # names of arguments


class OwnBiasOfDecoder(CrossCall):
    """UMT5: every layer makes its own bias, and returns hidden states alone."""

    __slots__ = ()
    ordered: ClassVar[tuple[str, ...]] = (MASK, STATES, STATES_MASK)
    alike: ClassVar[bool] = False

    def complete(self, hidden: torch.Tensor) -> str:
        return super().complete(hidden) or self._take_bias(hidden.shape[1])

    def _take_bias(self, columns: int) -> str:
        self.bias = self._own_bias(columns)
        return ""

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        return super().see(hidden, mask, unpad) or self.let_padding_see_all(unpad)

    def _own_bias(self, columns: int) -> torch.Tensor:
        attention: Any = self.layer.attention
        total = self.past + columns
        if not attention.has_relative_attention_bias:
            return torch.zeros(attention.n_heads, columns, total)
        weight = attention.relative_attention_bias.weight
        row = self.layer.bias_row
        if row is None or row.reach < total or not row.stamp.holds(weight):
            row = self.layer.bias_row = made_row(attention.compute_bias, weight, total)
        return row.bias(columns, total)


class FirstBiasOfDecoder(OwnBiasOfDecoder):
    """T5's decoder: as its encoder. A layer returns (hidden states, bias, bias of cross-attention), of which
    the last is all zeros."""

    __slots__ = ("passed",)
    ordered: ClassVar[tuple[str, ...]] = (MASK, PASSED, STATES, STATES_MASK, PASSED_CROSS)
    alike: ClassVar[bool] = True  # but for the bias, which is that of the first

    def __init__(self, layer: NativeLayer) -> None:
        super().__init__(layer)
        self.passed: torch.Tensor | None = None

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        if name == PASSED:
            self.passed = value
            return ""
        if name == PASSED_CROSS:
            return "a bias for cross-attention was passed" if bool(value.any()) else ""
        return super().take_argument(hidden, name, value)

    def _take_bias(self, columns: int) -> str:
        if self.passed is None:
            return super()._take_bias(columns)
        shape = tuple(self.passed.shape)
        if len(shape) != 4 or shape[0] != 1 or shape[2:] != (columns, self.past + columns):
            return f"the position bias has the shape {shape}"
        self.bias = self.passed[0].float().contiguous()
        return ""

    def give(self, result: torch.Tensor) -> tuple[object, ...]:
        assert self.bias is not None
        passed = self.bias[None].to(result.dtype)
        if self.states is None:
            return result, passed, None
        tokens = self.states.shape[1] if self.encoded is None else self.encoded.tensors[0].shape[2]
        return result, passed, result.new_zeros(1, 1, 1, 1).expand(*passed.shape[:3], tokens)

    @classmethod
    def variants(cls, layer: nn.Module, parts: Parts, masks: list[Mask]) -> Iterator[tuple[Mask, Keywords]]:
        """A layer without a bias of its own is given one."""
        attention: Any = layer.get_submodule(parts.attention)
        generator = torch.Generator().manual_seed(2)
        assert masks[-1] is not None
        columns = masks[-1].shape[2]
        for mask, more in super().variants(layer, parts, masks):
            pair = more.get(cls.cache_name)
            shape = 1, attention.n_heads, columns, columns + (pair.own.tokens if pair else 0)
            own = attention.has_relative_attention_bias
            yield mask, more if own else {PASSED: torch.randn(shape, generator=generator), **more}

    @classmethod
    def result(cls, result: Any, keywords: Keywords) -> object:
        return *result[1:], super().result(result[0], keywords)

    @staticmethod
    def handed_on(result: Any, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
        names = FirstBiasOfDecoder.ordered
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        return (), {**given, PASSED: result[1], PASSED_CROSS: result[2]}


def _decoder(name: str, call: type[CrossCall], gated: bool) -> Family:
    feed_forward = "layer.2.DenseReluDense"
    return replace(
        T5,
        name=name,
        call=call,
        cross_attention="layer.1.EncDecAttention",
        cross_query="layer.1.EncDecAttention.q",
        cross_key="layer.1.EncDecAttention.k",
        cross_value="layer.1.EncDecAttention.v",
        cross_output="layer.1.EncDecAttention.o",
        cross_norm="layer.1.layer_norm",
        gate=f"{feed_forward}.wi_0" if gated else "",
        up=f"{feed_forward}.wi_1" if gated else f"{feed_forward}.wi",
        activation=f"{feed_forward}.act",
        down=f"{feed_forward}.wo",
        output_norm="layer.2.layer_norm",
    )


GATED_DECODER = _decoder("T5 gated decoder", FirstBiasOfDecoder, gated=True)
FAMILIES = (
    _decoder("T5 decoder", FirstBiasOfDecoder, gated=False),
    GATED_DECODER,
    _decoder("UMT5 decoder", OwnBiasOfDecoder, gated=False),
    _decoder("UMT5 gated decoder", OwnBiasOfDecoder, gated=True),
)

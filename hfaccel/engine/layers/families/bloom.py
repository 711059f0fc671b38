"""BLOOM: a joint projection, head by head, and a bias for the scores of each key (ALiBi)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.layers.call import Mask, Sample
from hfaccel.engine.layers.decoder import EagerDecoderCall
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.native_layer import NativeLayer
from hfaccel.engine.layers.parts import Parts, query_heads
from hfaccel.engine.replacements import Keywords


class Alibi(EagerDecoderCall):
    """BLOOM: `alibi` (batch * heads, 1, keys) grows with the place of a key in its text."""

    __slots__ = ("alibi",)
    configured: ClassVar[bool] = False
    cache_name: ClassVar[str] = "layer_past"
    gives_pair: ClassVar[bool] = True
    bias_name: ClassVar[str] = "alibi"  # of the argument

    def __init__(self, layer: NativeLayer) -> None:
        super().__init__(layer)
        self.alibi: torch.Tensor | None = None

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        if name != self.bias_name:
            return super().take_argument(hidden, name, value)
        self.alibi = value
        return ""

    def complete(self, hidden: torch.Tensor) -> str:
        problem = super().complete(hidden)
        if problem or self.alibi is None:
            return problem or f"no {self.bias_name} was passed"
        return self.read_bias(hidden, self.alibi)

    def keys(self, hidden: torch.Tensor) -> int:
        """How many keys a mask and a bias are for."""
        return self.places or self.past + hidden.shape[1]

    def read_bias(self, hidden: torch.Tensor, alibi: torch.Tensor) -> str:
        batch, heads, keys = len(hidden), self.layer.query_heads, self.keys(hidden)
        if tuple(alibi.shape) != (batch * heads, 1, keys):
            return f"the bias has the shape {tuple(alibi.shape)}"
        self.bias = alibi.float().reshape(batch, heads, 1, keys).contiguous()
        return ""

    # For the trial of such a layer

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        masks, arguments = EagerDecoderCall.sample(layer, parts, padding, generator)
        return masks, arguments | {"alibi": random_biases(layer, parts, *padding.shape).flatten(0, 1)}

    @classmethod
    def variants(cls, layer: nn.Module, parts: Parts, masks: list[Mask]) -> Iterator[tuple[Mask, Keywords]]:
        for mask, more in super().variants(layer, parts, masks):
            assert mask is not None
            bias = random_biases(layer, parts, len(mask), mask.shape[-1])
            yield cls.sampled(mask, bias, more)

    @classmethod
    def sampled(cls, mask: torch.Tensor, bias: torch.Tensor, more: Keywords) -> tuple[Mask, Keywords]:
        """A call with this bias (batch, heads, 1, keys) and this mask, which is added to scores."""
        return mask, more | {"alibi": bias.flatten(0, 1)}


def random_biases(layer: nn.Module, parts: Parts, batch: int, keys: int) -> torch.Tensor:
    shape = batch, query_heads(parts, layer), 1, keys
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


BLOOM = Family(
    name="BLOOM",
    attention="self_attention",
    qkv="self_attention.query_key_value",
    by_head=True,
    attention_output="self_attention.dense",
    attention_norm="input_layernorm",
    up="mlp.dense_h_to_4h",
    activation="mlp.gelu_impl",
    down="mlp.dense_4h_to_h",
    output_norm="post_attention_layernorm",
    norm_first=True,
    call=Alibi,
)
FAMILIES = (BLOOM,)

"""GPT-Neo: scores are not scaled, and every second layer hides what is beyond its window."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from hfaccel.engine.layers.call import Call, Mask, Sample
from hfaccel.engine.layers.decoder import EagerDecoderCall, additive
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.parts import Parts


class OwnWindow(EagerDecoderCall):
    """GPT-Neo: the mask says nothing of a window."""

    __slots__ = ()
    cache_name: ClassVar[str] = "layer_past"
    gives_pair: ClassVar[bool] = True
    own_window: ClassVar[bool] = True

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        if self.places:  # the layer counts its window from the end of these
            return "the cache is static"
        return super().see(hidden, mask, unpad)

    @staticmethod
    def longest(layer: nn.Module, parts: Parts) -> float:
        return len(layer.get_buffer(f"{parts.attention}.bias")[0, 0])  # which hides later tokens

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        _, arguments = Call.sample(layer, parts, padding, generator)
        causal = torch.ones(len(padding), 1, *padding.shape[1:] * 2, dtype=torch.bool).tril()
        return additive([None, causal & ~padding.flip(1)[:, None, None, :]]), arguments


FAMILIES = (
    Family(
        name="GPT-Neo",
        attention="attn.attention",
        query="attn.attention.q_proj",
        key="attn.attention.k_proj",
        value="attn.attention.v_proj",
        attention_output="attn.attention.out_proj",
        attention_norm="ln_1",
        up="mlp.c_fc",
        activation="mlp.act",
        down="mlp.c_proj",
        output_norm="ln_2",
        norm_first=True,
        unscaled=True,
        call=OwnWindow,
    ),
)

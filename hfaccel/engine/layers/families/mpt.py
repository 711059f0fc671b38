"""MPT: a joint projection, and a bias for the scores of each key (ALiBi), read off one table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import nn

from hfaccel.engine.layers.call import HIDDEN, Mask, Sample
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.bloom import Alibi, random_biases
from hfaccel.engine.layers.parts import Parts
from hfaccel.engine.replacements import Keywords


class Table(Alibi):
    """MPT: `position_bias` (heads, 1, most keys) ends with the last key. The mask is True where a token is
    hidden."""

    __slots__ = ()
    bias_name: ClassVar[str] = "position_bias"

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        if mask is None or mask.dtype is not torch.bool:
            return "no mask of booleans was passed"
        return super().see(hidden, torch.where(mask, HIDDEN, 0.0), unpad)

    def read_bias(self, hidden: torch.Tensor, alibi: torch.Tensor) -> str:
        keys = self.keys(hidden)
        if alibi.dim() != 3 or alibi.shape[:2] != (self.layer.query_heads, 1) or alibi.shape[2] < keys:
            return f"the bias has the shape {tuple(alibi.shape)}"
        self.bias = alibi[None, :, :, -keys:].float()
        return ""

    # For the trial of such a layer

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        masks, _ = Alibi.sample(layer, parts, padding, generator)
        bias = random_biases(layer, parts, 1, padding.shape[1])
        return [each < 0 for each in masks if each is not None], {"position_bias": bias[0]}

    @classmethod
    def variants(cls, layer: nn.Module, parts: Parts, masks: list[Mask]) -> Iterator[tuple[Mask, Keywords]]:
        hides = (each for each in masks if each is not None)
        yield from super().variants(layer, parts, [torch.where(each, HIDDEN, 0.0) for each in hides])

    @classmethod
    def sampled(cls, mask: torch.Tensor, bias: torch.Tensor, more: Keywords) -> tuple[Mask, Keywords]:
        table = torch.cat([bias[-1].flip(-1), bias[-1]], -1)  # longer than the keys need
        return mask < 0, more | {"position_bias": table}


FAMILIES = (
    Family(
        name="MPT",
        attention="attn",
        qkv="attn.Wqkv",
        attention_output="attn.out_proj",
        attention_norm="norm_1",
        up="ffn.up_proj",
        activation="ffn.act",
        down="ffn.down_proj",
        output_norm="norm_2",
        norm_first=True,
        call=Table,
    ),
)

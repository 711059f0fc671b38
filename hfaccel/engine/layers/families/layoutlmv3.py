"""LayoutLMv3: BERT with biases for positions in a text and on a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.calls.ragged import whole
from hfaccel.engine.layers.call import Mask, Sample, added, random_bias
from hfaccel.engine.layers.families.bert import BERT
from hfaccel.engine.layers.families.markuplm import Eager
from hfaccel.engine.layers.native_layer import NativeLayer
from hfaccel.engine.layers.parts import Parts, head_size

BIASES = ("rel_pos", "rel_2d_pos")


class TextBias(Eager):
    """LayoutLMv3: the biases come from distances between words, in the text and on the page, and differ from
    text to text. The mask, which has holes if an image follows a padded text, is added to them. Texts run
    one after another, which costs little because they are long."""

    __slots__ = ("biases", "given")
    unpads: ClassVar[bool] = False
    configured: ClassVar[bool] = False

    def __init__(self, layer: NativeLayer) -> None:
        super().__init__(layer)
        self.given: dict[str, torch.Tensor] = {}
        self.biases: torch.Tensor  # (batch, heads, length, length)

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        if name not in BIASES:
            return f"{name} was passed"
        self.given[name] = value
        return ""

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        batch, length, _ = hidden.shape
        attention = self.layer.attention
        names = [BIASES[0]] if attention.has_relative_attention_bias else []
        if names and attention.has_spatial_attention_bias:
            names = [*BIASES]
        if any(name not in self.given for name in names):
            return "no relative positions were passed"
        heads = attention.num_attention_heads
        bias = torch.zeros(batch, heads, length, length)
        shape = bias.shape
        for name in names:
            if not _fits(self.given[name], shape):
                return f"{name} has the shape {tuple(self.given[name].shape)}"
            bias += self.given[name]
        bias /= math.sqrt(head_size(attention) or 1)
        if mask is not None:
            if not mask.is_floating_point() or not _fits(mask, shape):
                return f"the attention mask is of {mask.dtype} and has the shape {tuple(mask.shape)}"
            bias += mask
        self.biases, self.sequences = bias, whole(1, length)
        return ""

    def compute(self, layers: Sequence[NativeLayer], rows: torch.Tensor, output: torch.Tensor) -> None:
        for number, bias in enumerate(self.biases):
            self.bias = bias
            super().compute(layers, rows[number : number + 1], output[number : number + 1])

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        biases = [torch.cat([random_bias(layer, parts, padding, generator) for _ in padding]) for _ in BIASES]
        return [None, added(padding)], dict(zip(BIASES, biases, strict=True))


def _fits(tensor: torch.Tensor, shape: torch.Size) -> bool:
    """Whether the tensor can be added to one of this shape, (batch, heads, length, length)."""
    return tensor.dim() == 4 and all(
        each in (1, size) for each, size in zip(tensor.shape, shape, strict=True)
    )


FAMILIES = (replace(BERT, name="LayoutLMv3", marks=("has_spatial_attention_bias",), call=TextBias),)

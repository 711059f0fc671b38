"""YOLOS and other encoders of images whose layers take no mask."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from hfaccel.engine.layers.call import Call, Mask, Sample
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.parts import Parts


class Unmasked(Call):
    """YOLOS: images have no padding, and a layer's forward takes no mask."""

    __slots__ = ()
    masked: ClassVar[bool] = False

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        return super().see(hidden, mask, unpad) if mask is None else "an attention mask was passed"

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        return [None], {}


FAMILIES = (
    Family(
        name="YOLOS",
        attention="attention.attention",
        query="attention.attention.query",
        key="attention.attention.key",
        value="attention.attention.value",
        attention_output="attention.output.dense",
        attention_norm="layernorm_before",
        up="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        down="output.dense",
        output_norm="layernorm_after",
        norm_first=True,
        call=Unmasked,
    ),
)

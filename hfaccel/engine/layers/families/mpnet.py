"""MPNet, whose layers all get the same bias for their scores."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.layers.call import Call, Sample, added, random_bias
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.parts import Parts


class PassedBias(Call):
    """MPNet: every layer gets the same bias for its scores, (1 or batch, heads, length, length)."""

    __slots__ = ()
    positional: ClassVar[tuple[str, ...]] = ("position_bias",)
    configured: ClassVar[bool] = False

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        return self._bias(hidden, value) if name == "position_bias" else f"{name} was passed"

    def _bias(self, hidden: torch.Tensor, bias: torch.Tensor) -> str:
        length = hidden.shape[1]
        if bias.dim() != 4 or bias.shape[-2:] != (length, length):
            return f"the position bias has the shape {tuple(bias.shape)}"
        if bias.shape[0] > 1 and bias.stride(0) != 0 and not torch.equal(bias, bias[:1].expand_as(bias)):
            return "the position bias differs between sequences"
        self.bias = bias[0].float().contiguous()
        return ""

    def give(self, result: torch.Tensor) -> object:
        return (result,)

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        bias = random_bias(layer, parts, padding, generator)
        return [None, added(padding)], {"position_bias": bias.expand(len(padding), -1, -1, -1)}


FAMILIES = (
    Family(
        name="MPNet",
        attention="attention.attn",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_output="attention.attn.o",
        attention_norm="attention.LayerNorm",
        up="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        down="output.dense",
        output_norm="output.LayerNorm",
        call=PassedBias,
    ),
)

"""The encoders of T5, mT5 and UMT5, with and without a gate in the feed-forward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.layers.call import Call, Sample, random_bias
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.mpnet import PassedBias
from hfaccel.engine.layers.parts import Parts


class FirstBias(PassedBias):
    """T5: the first layer makes the bias and passes it on. A layer returns (hidden states, bias, None)."""

    __slots__ = ("passed",)
    alike: ClassVar[bool] = False

    def take_argument(self, hidden: torch.Tensor, name: str, value: object) -> str:
        if name == "position_bias":
            self.passed = value
        return super().take_argument(hidden, name, value)

    def complete(self, hidden: torch.Tensor) -> str:
        if self.bias is None:
            self.passed = _made_bias(self.layer.attention, hidden)
            return self._bias(hidden, self.passed)
        return ""

    def give(self, result: torch.Tensor) -> object:
        return result, self.passed, None

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        masks, arguments = Call.sample(layer, parts, padding, generator)
        if not layer.get_submodule(parts.attention).has_relative_attention_bias:
            arguments["position_bias"] = random_bias(layer, parts, padding, generator)
        return masks, arguments


class OwnBias(FirstBias):
    """UMT5: every layer makes its own bias, and returns hidden states alone."""

    __slots__ = ()
    positional: ClassVar[tuple[str, ...]] = ()

    def take_argument(self, hidden: torch.Tensor, name: str, value: object) -> str:
        return f"{name} was passed"

    def give(self, result: torch.Tensor) -> object:
        return result

    sample = staticmethod(Call.sample)


def _made_bias(attention: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The bias, (1, heads, length, length), which depends on distances alone. The module computes one row
    that covers all distances, and each query's row is a part of that row."""
    length = hidden.shape[1]
    if not attention.has_relative_attention_bias:
        return hidden.new_zeros(1, attention.n_heads, length, length)
    row = attention.compute_bias(1, 2 * length - 1, past_seen_tokens=length - 1)
    windows: torch.Tensor = row[:, :, 0].unfold(-1, length, 1)
    return windows.flip(2).contiguous()


T5 = Family(
    name="T5",
    attention="layer.0.SelfAttention",
    query="layer.0.SelfAttention.q",
    key="layer.0.SelfAttention.k",
    value="layer.0.SelfAttention.v",
    attention_output="layer.0.SelfAttention.o",
    attention_norm="layer.0.layer_norm",
    up="layer.1.DenseReluDense.wi",
    activation="layer.1.DenseReluDense.act",
    down="layer.1.DenseReluDense.wo",
    output_norm="layer.1.layer_norm",
    norm_first=True,
    call=FirstBias,
)
GATED = replace(T5, name="T5 gated", gate="layer.1.DenseReluDense.wi_0", up="layer.1.DenseReluDense.wi_1")
FAMILIES = (
    T5,
    GATED,
    replace(T5, name="UMT5", call=OwnBias),
    replace(GATED, name="UMT5 gated", call=OwnBias),
)

"""Pix2Struct's decoder: T5's with a gate and other names. A layer returns attention weights beside biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.t5_decoder import (
    GATED_DECODER,
    PASSED,
    PASSED_CROSS,
    FirstBiasOfDecoder,
)
from hfaccel.engine.replacements import Arguments, Keywords


class BiasesAndWeights(FirstBiasOfDecoder):
    """A layer returns (hidden states, bias, weights), and the same two of cross-attention. The kernels keep
    no weights."""

    __slots__ = ()

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        if name == "output_attentions":
            return "attentions are wanted"
        return super().take_argument(hidden, name, value)

    def give(self, result: torch.Tensor) -> tuple[object, ...]:
        hidden, bias, of_encoder = super().give(result)
        return (hidden, bias, None) if self.states is None else (hidden, bias, None, of_encoder, None)

    @staticmethod
    def handed_on(result: Any, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
        given = {**dict(zip(FirstBiasOfDecoder.ordered, args, strict=False)), **kwargs}
        return (), {**given, PASSED: result[1], PASSED_CROSS: result[3] if len(result) > 3 else None}


FAMILIES: tuple[Family, ...] = (
    replace(
        GATED_DECODER,
        name="Pix2Struct decoder",
        call=BiasesAndWeights,
        attention="self_attention.attention",
        query="self_attention.attention.query",
        key="self_attention.attention.key",
        value="self_attention.attention.value",
        attention_output="self_attention.attention.output",
        attention_norm="self_attention.layer_norm",
        cross_attention="encoder_decoder_attention.attention",
        cross_query="encoder_decoder_attention.attention.query",
        cross_key="encoder_decoder_attention.attention.key",
        cross_value="encoder_decoder_attention.attention.value",
        cross_output="encoder_decoder_attention.attention.output",
        cross_norm="encoder_decoder_attention.layer_norm",
        gate="mlp.DenseReluDense.wi_0",
        up="mlp.DenseReluDense.wi_1",
        activation="mlp.DenseReluDense.act",
        down="mlp.DenseReluDense.wo",
        output_norm="mlp.layer_norm",
    ),
)

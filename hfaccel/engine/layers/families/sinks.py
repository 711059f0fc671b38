"""Decoders whose attention has sinks: in each head's softmax one more score, which no token has. GPT-OSS, and
Granite with sliding windows, with and without a mixture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from hfaccel.engine.layers.call import Sample
from hfaccel.engine.layers.decoder import EagerDecoderCall
from hfaccel.engine.layers.families.llama import LLAMA
from hfaccel.engine.layers.families.mixtures import GRANITE, GRANITE_SHARED
from hfaccel.engine.layers.parts import SINKS, Parts
from hfaccel.engine.replacements import Keywords


class SinkCall(EagerDecoderCall):
    """Where all tokens are hidden by the lowest number, nothing but the sink has a share."""

    __slots__ = ()

    def let_padding_see_all(self, unpad: bool) -> str:
        return ""


class HalfCall(SinkCall):
    """GPT-OSS: cosines and sines have one number for two of a head."""

    __slots__ = ()

    def rotate(self, hidden: torch.Tensor, embeddings: Iterable[torch.Tensor]) -> str:
        return super().rotate(hidden, (torch.cat((each, each), -1) for each in embeddings))

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        masks, arguments = SinkCall.sample(layer, parts, padding, generator)
        halves = tuple(each.chunk(2, -1)[0] for each in arguments["position_embeddings"])
        given: Keywords = {**arguments, "position_embeddings": halves}
        return masks, given


FAMILIES = (
    replace(
        LLAMA,
        name="GPT-OSS",
        gate="",
        up="",
        activation="",
        down="",
        experts="mlp.experts",
        router="mlp.router",
        marks=(SINKS,),
        call=HalfCall,
    ),
    replace(LLAMA, name="Granite with sinks", marks=(SINKS,), call=SinkCall),
    replace(GRANITE_SHARED, name="Granite-MoE with a shared expert and sinks", marks=(SINKS,), call=SinkCall),
    replace(GRANITE, name="Granite-MoE with sinks", marks=(SINKS,), call=SinkCall),
)

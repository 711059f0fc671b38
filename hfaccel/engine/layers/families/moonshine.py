"""Moonshine: rotary positions that turn neighbours, in the encoder as in the decoder, and a gate in the
decoder's feed-forward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from hfaccel.engine.layers.call import Call
from hfaccel.engine.layers.crossing import CrossCall
from hfaccel.engine.layers.families.bart import DECODER
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.llama import LLAMA, Halves, for_neighbours


class HalvesOfEncoder(Call):
    """As GLM's."""

    __slots__ = ()

    def rotate(self, hidden: torch.Tensor, embeddings: Iterable[torch.Tensor]) -> str:
        return super().rotate(hidden, for_neighbours(embeddings))


class HalvesAcross(Halves, CrossCall):
    """Of self-attention alone."""

    __slots__ = ()


MOONSHINE = replace(
    LLAMA,
    name="Moonshine",
    gate="",
    up="mlp.fc1",
    activation="mlp.activation_fn",
    down="mlp.fc2",
    pairs=True,
    call=HalvesOfEncoder,
)
FAMILIES: tuple[Family, ...] = (
    replace(
        MOONSHINE,
        name="Moonshine decoder",
        up="",
        gate_up="mlp.fc1",
        up_first=True,
        output_norm="final_layernorm",
        cross_attention="encoder_attn",
        cross_query=DECODER.cross_query,
        cross_key=DECODER.cross_key,
        cross_value=DECODER.cross_value,
        cross_output="encoder_attn.o_proj",
        cross_norm="post_attention_layernorm",
        call=HalvesAcross,
    ),
    MOONSHINE,
)

"""GPT-NeoX, Pythia and Persimmon: a joint projection, head by head, and mostly a parallel feed-forward."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from hfaccel.engine.layers.decoder import DecoderCall
from hfaccel.engine.layers.families.base import Family


class LayerPast(DecoderCall):
    """GPT-NeoX: the cache has another name."""

    __slots__ = ()
    cache_name: ClassVar[str] = "layer_past"


NEOX = Family(
    name="GPT-NeoX",
    attention="attention",
    qkv="attention.query_key_value",
    by_head=True,
    attention_output="attention.dense",
    attention_norm="input_layernorm",
    up="mlp.dense_h_to_4h",
    activation="mlp.act",
    down="mlp.dense_4h_to_h",
    output_norm="post_attention_layernorm",
    norm_first=True,
    parallel=True,
    rotary=True,
    call=LayerPast,
)
PERSIMMON = replace(
    NEOX,
    name="Persimmon",
    attention="self_attn",
    qkv="self_attn.query_key_value",
    attention_output="self_attn.dense",
    parallel=False,
    call=DecoderCall,
)
FAMILIES = (
    NEOX,
    replace(NEOX, name="GPT-NeoX in sequence", parallel=False),
    replace(
        PERSIMMON,
        name="Persimmon with norms",
        query_norm="self_attn.q_layernorm",
        key_norm="self_attn.k_layernorm",
    ),
    PERSIMMON,
)

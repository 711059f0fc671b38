"""CLIP, whose texts use causal attention, and SigLIP, whose layers ignore is_causal."""

from __future__ import annotations

from dataclasses import replace

from hfaccel.engine.layers.families.base import Family

CLIP = Family(
    name="CLIP",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.out_proj",
    attention_norm="layer_norm1",
    up="mlp.fc1",
    activation="mlp.activation_fn",
    down="mlp.fc2",
    output_norm="layer_norm2",
    norm_first=True,
    causal=True,
)
FAMILIES = (CLIP, replace(CLIP, name="SigLIP", causal=False))

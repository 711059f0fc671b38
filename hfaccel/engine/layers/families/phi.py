"""Phi: attention and feed-forward side by side after one norm, and no gate."""

from __future__ import annotations

from dataclasses import replace

from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.llama import LLAMA

PHI = replace(
    LLAMA,
    name="Phi",
    attention_output="self_attn.dense",
    gate="",
    up="mlp.fc1",
    activation="mlp.activation_fn",
    down="mlp.fc2",
    output_norm="input_layernorm",
    parallel=True,
)
# A layer with more norms has the parts of one with fewer: what has most is tried first.
FAMILIES: tuple[Family, ...] = (
    replace(PHI, name="Phi with norms", query_norm="self_attn.q_layernorm", key_norm="self_attn.k_layernorm"),
    PHI,
)

"""ModernBERT: joint projections, rotary positions, and layers with sliding windows."""

from __future__ import annotations

from hfaccel.engine.layers.families.base import Family

FAMILIES = (
    Family(
        name="ModernBERT",
        attention="attn",
        qkv="attn.Wqkv",
        attention_output="attn.Wo",
        attention_norm="attn_norm",
        gate_up="mlp.Wi",
        activation="mlp.act",
        down="mlp.Wo",
        output_norm="mlp_norm",
        norm_first=True,
        rotary=True,
    ),
)

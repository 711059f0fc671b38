"""NomicBERT: rotary positions and a gated feed-forward."""

from __future__ import annotations

from hfaccel.engine.layers.families.base import Family

FAMILIES = (
    Family(
        name="NomicBERT",
        attention="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        attention_output="self_attn.o_proj",
        attention_norm="post_attention_layernorm",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        activation="mlp.act_fn",
        down="mlp.down_proj",
        output_norm="post_mlp_layernorm",
        rotary=True,
    ),
)

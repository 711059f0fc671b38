"""ViT and other encoders of images."""

from __future__ import annotations

from hfaccel.engine.layers.families.base import Family

FAMILIES = (
    Family(
        name="ViT",
        attention="attention",
        query="attention.q_proj",
        key="attention.k_proj",
        value="attention.v_proj",
        attention_output="attention.o_proj",
        attention_norm="layernorm_before",
        up="mlp.fc1",
        activation="mlp.activation_fn",
        down="mlp.fc2",
        output_norm="layernorm_after",
        norm_first=True,
    ),
)

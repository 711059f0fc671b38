"""ALBERT, whose layers share their weights."""

from __future__ import annotations

from hfaccel.engine.layers.families.base import Family

FAMILIES = (
    Family(
        name="ALBERT",
        attention="attention",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        attention_output="attention.dense",
        attention_norm="attention.LayerNorm",
        up="ffn",
        activation="activation",
        down="ffn_output",
        output_norm="full_layer_layer_norm",
    ),
)

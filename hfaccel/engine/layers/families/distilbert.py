"""DistilBERT."""

from __future__ import annotations

from hfaccel.engine.layers.families.base import Family

FAMILIES = (
    Family(
        name="DistilBERT",
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        activation="ffn.activation",
        down="ffn.lin2",
        output_norm="output_layer_norm",
    ),
)

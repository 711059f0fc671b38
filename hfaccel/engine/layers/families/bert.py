"""BERT, RoBERTa, ELECTRA and their many descendants."""

from __future__ import annotations

from hfaccel.engine.layers.families.base import Family

BERT = Family(
    name="BERT",
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    activation="intermediate.intermediate_act_fn",
    down="output.dense",
    output_norm="output.LayerNorm",
)
FAMILIES = (BERT,)

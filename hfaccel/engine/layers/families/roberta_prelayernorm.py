"""RoBERTa with norms before attention and before the feed-forward."""

from __future__ import annotations

from dataclasses import replace

from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.bert import BERT

PRELAYERNORM = replace(
    BERT,
    name="RoBERTa-PreLayerNorm",
    attention_norm="attention.LayerNorm",
    output_norm="intermediate.LayerNorm",
    norm_first=True,
)
XL = replace(
    PRELAYERNORM,
    name="XLM-RoBERTa-XL",
    attention_norm="attention.self_attn_layer_norm",
    output_norm="LayerNorm",
)
FAMILIES: tuple[Family, ...] = (PRELAYERNORM, XL)

"""RoBERTa with norms before attention and before the feed-forward."""

from __future__ import annotations

from dataclasses import replace

from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.bert import BERT

FAMILIES: tuple[Family, ...] = (
    replace(
        BERT,
        name="RoBERTa-PreLayerNorm",
        attention_norm="attention.LayerNorm",
        output_norm="intermediate.LayerNorm",
        norm_first=True,
    ),
)

"""BLIP's encoder of images."""

from __future__ import annotations

from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.markuplm import Eager
from hfaccel.engine.layers.families.yolos import Unmasked


class EagerUnmasked(Unmasked, Eager):
    """BLIP: images have no padding, and attention is eager."""

    __slots__ = ()


FAMILIES = (
    Family(
        name="BLIP",
        attention="self_attn",
        qkv="self_attn.qkv",
        attention_output="self_attn.projection",
        attention_norm="layer_norm1",
        up="mlp.fc1",
        activation="mlp.activation_fn",
        down="mlp.fc2",
        output_norm="layer_norm2",
        norm_first=True,
        call=EagerUnmasked,
    ),
)

"""GPT-BigCode (StarCoder, SantaCoder): GPT-2 with nn.Linear and mostly one head of keys and values."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from hfaccel.engine.layers.decoder import DecoderCall
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.gpt2 import GPT2


class AfterEncoder(DecoderCall):
    """GPT-BigCode: the model passes the states of an encoder by position, mostly None."""

    __slots__ = ()
    cache_name: ClassVar[str] = "layer_past"
    ordered: ClassVar[tuple[str, ...]] = ("encoder_hidden_states",)


FAMILIES: tuple[Family, ...] = (replace(GPT2, name="GPT-BigCode", by_head=True, call=AfterEncoder),)

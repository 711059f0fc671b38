"""BERT, RoBERTa and their descendants as decoders, with and without an encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from hfaccel.engine.layers.call import MASK
from hfaccel.engine.layers.crossing import STATES, CrossCall
from hfaccel.engine.layers.decoder import DecoderCall
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.bert import BERT


class Alone(DecoderCall):
    """BERT without an encoder, whose states are passed by position: None."""

    __slots__ = ()
    ordered: ClassVar[tuple[str, ...]] = (MASK, STATES)


def _crossing(family: Family) -> Family:
    return replace(
        family,
        name=f"{family.name} with an encoder",
        call=CrossCall,
        cross_attention="crossattention.self",
        cross_query="crossattention.self.query",
        cross_key="crossattention.self.key",
        cross_value="crossattention.self.value",
        cross_output="crossattention.output.dense",
        cross_norm="crossattention.output.LayerNorm",
    )


DECODER = replace(BERT, name="BERT decoder", call=Alone)
FAMILIES: tuple[Family, ...] = (DECODER, _crossing(DECODER))

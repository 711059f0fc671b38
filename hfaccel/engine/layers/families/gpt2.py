"""GPT-2, with and without an encoder: a joint projection, Conv1D instead of nn.Linear, positions in the
embeddings."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from hfaccel.engine.layers.call import MASK
from hfaccel.engine.layers.crossing import STATES, CrossCall
from hfaccel.engine.layers.decoder import CACHE, DecoderCall
from hfaccel.engine.layers.families.base import Family


class Ordered(DecoderCall):
    """GPT-2: the model passes arguments by position."""

    __slots__ = ()
    ordered: ClassVar[tuple[str, ...]] = (CACHE, MASK, STATES)


class OrderedCross(CrossCall):
    """The same in front of an encoder."""

    __slots__ = ()
    ordered: ClassVar[tuple[str, ...]] = Ordered.ordered


GPT2 = Family(
    name="GPT-2",
    attention="attn",
    qkv="attn.c_attn",
    attention_output="attn.c_proj",
    attention_norm="ln_1",
    up="mlp.c_fc",
    activation="mlp.act",
    down="mlp.c_proj",
    output_norm="ln_2",
    norm_first=True,
    call=Ordered,
)
DECODER = replace(
    GPT2,
    name="GPT-2 decoder",
    call=OrderedCross,
    cross_attention="crossattention",
    cross_query="crossattention.q_attn",
    cross_key_value="crossattention.c_attn",
    cross_output="crossattention.c_proj",
    cross_norm="ln_cross_attn",
)
FAMILIES = (GPT2, DECODER)

"""GPT-2: a joint projection, Conv1D instead of nn.Linear, and positions added to the embeddings."""

from __future__ import annotations

from typing import ClassVar

from hfaccel.engine.layers.call import MASK
from hfaccel.engine.layers.decoder import CACHE, DecoderCall
from hfaccel.engine.layers.families.base import Family


class Ordered(DecoderCall):
    """GPT-2: the model passes arguments by position."""

    __slots__ = ()
    ordered: ClassVar[tuple[str, ...]] = (CACHE, MASK, "encoder_hidden_states")


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
FAMILIES = (GPT2,)

"""BART, Whisper and other models from fairseq: encoders, and decoders with attention over these. Attention
of Speech2Text and of BigBird-Pegasus' decoder is eager.
"""

from __future__ import annotations

from dataclasses import replace

from hfaccel.engine.layers.crossing import CrossCall, EagerCrossCall
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.markuplm import Eager

WHISPER = Family(
    name="Whisper",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.out_proj",
    attention_norm="self_attn_layer_norm",
    up="fc1",
    activation="activation_fn",
    down="fc2",
    output_norm="final_layer_norm",
    norm_first=True,
)
DECODER = replace(
    WHISPER,
    name="Whisper decoder",
    call=CrossCall,
    cross_attention="encoder_attn",
    cross_query="encoder_attn.q_proj",
    cross_key="encoder_attn.k_proj",
    cross_value="encoder_attn.v_proj",
    cross_output="encoder_attn.out_proj",
    cross_norm="encoder_attn_layer_norm",
)
FAMILIES: tuple[Family, ...] = (
    WHISPER,
    replace(WHISPER, name="BART", norm_first=False),
    DECODER,
    replace(DECODER, name="BART decoder", norm_first=False),
    replace(WHISPER, name="Speech2Text", call=Eager),
    replace(DECODER, name="Speech2Text decoder", call=EagerCrossCall),
)

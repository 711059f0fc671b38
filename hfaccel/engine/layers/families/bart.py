"""The encoders of Whisper, BART and other models from fairseq."""

from __future__ import annotations

from dataclasses import replace

from hfaccel.engine.layers.families.base import Family

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
FAMILIES = (WHISPER, replace(WHISPER, name="BART", norm_first=False))

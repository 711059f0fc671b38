"""wav2vec2, HuBERT and other encoders of sounds, with post-norm or pre-norm layers."""

from __future__ import annotations

from dataclasses import replace

from hfaccel.engine.layers.families.base import Family

WAV2VEC2 = Family(
    name="wav2vec2",
    attention="attention",
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    attention_output="attention.out_proj",
    attention_norm="layer_norm",
    up="feed_forward.intermediate_dense",
    activation="feed_forward.intermediate_act_fn",
    down="feed_forward.output_dense",
    output_norm="final_layer_norm",
)
FAMILIES = (WAV2VEC2, replace(WAV2VEC2, name="wav2vec2 with stable norm", norm_first=True))

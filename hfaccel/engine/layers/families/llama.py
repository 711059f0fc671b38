"""Llama and the many decoders built like it: grouped-query attention, rotary positions, RMS norms and a gated
feed-forward. Also Gemma, Granite, OLMo, SmolLM3, GLM, HunYuan, and Starcoder2, Arcee and Nemotron, whose
feed-forward has no gate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from hfaccel.engine.layers.decoder import DecoderCall, EagerDecoderCall
from hfaccel.engine.layers.families.base import Family


def for_neighbours(embeddings: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The first half of cosines and sines, each number twice."""
    return (each.chunk(2, -1)[0].repeat_interleave(2, -1) for each in embeddings)


class Halves(DecoderCall):
    """GLM: of cosines and sines the first half counts, each number for two neighbours."""

    __slots__ = ()

    def rotate(self, hidden: torch.Tensor, embeddings: Iterable[torch.Tensor]) -> str:
        return super().rotate(hidden, for_neighbours(embeddings))


LLAMA = Family(
    name="Llama",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.o_proj",
    attention_norm="input_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    activation="mlp.act_fn",
    down="mlp.down_proj",
    output_norm="post_attention_layernorm",
    norm_first=True,
    rotary=True,
    call=DecoderCall,
)
QWEN3 = replace(LLAMA, name="Qwen3", query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
GEMMA2 = replace(
    LLAMA,
    name="Gemma 2",
    attention_end="post_attention_layernorm",
    output_norm="pre_feedforward_layernorm",
    output_end="post_feedforward_layernorm",
    call=EagerDecoderCall,
)
GEMMA3 = replace(
    GEMMA2,
    name="Gemma 3",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    call=DecoderCall,
)
OLMO2 = replace(
    QWEN3,
    name="OLMo 2",
    attention_norm="",
    attention_end="post_attention_layernorm",
    output_norm="",
    output_end="post_feedforward_layernorm",
)
COHERE = replace(LLAMA, name="Cohere", output_norm="input_layernorm", parallel=True, pairs=True)
ERNIE = replace(LLAMA, name="ERNIE 4.5", pairs=True, call=Halves)
GLM = replace(ERNIE, name="GLM", gate="", up="", gate_up="mlp.gate_up_proj", activation="mlp.activation_fn")
GLM4 = replace(GLM, name="GLM-4", attention_end="post_self_attn_layernorm", output_end="post_mlp_layernorm")

# A layer with more norms has the parts of one with fewer: what has most is tried first.
FAMILIES = (
    GEMMA3,
    GEMMA2,
    OLMO2,
    replace(OLMO2, name="EXAONE 4 without positions", unrotated=True),
    QWEN3,
    replace(
        LLAMA,
        name="HunYuan",
        query_norm="self_attn.query_layernorm",
        key_norm="self_attn.key_layernorm",
        norms_rotated=True,
    ),
    replace(LLAMA, name="HyperCLOVA X", attention_end="post_norm1", output_end="post_norm2"),
    LLAMA,
    ERNIE,
    GLM4,
    GLM,
    replace(LLAMA, name="StableLM", output_norm="input_layernorm", parallel=True),
    COHERE,
    replace(COHERE, name="Cohere 2 without positions", unrotated=True),
    replace(
        LLAMA,
        name="Phi-3",
        query="",
        key="",
        value="",
        qkv="self_attn.qkv_proj",
        gate="",
        up="",
        gate_up="mlp.gate_up_proj",
        activation="mlp.activation_fn",
    ),
    replace(LLAMA, name="Starcoder2", gate="", up="mlp.c_fc", activation="mlp.act", down="mlp.c_proj"),
    replace(LLAMA, name="Arcee", gate=""),
    replace(LLAMA, name="VaultGemma", output_norm="pre_feedforward_layernorm", call=EagerDecoderCall),
)

"""Decoders like Llama with a mixture of experts: Mixtral, Qwen-MoE, OLMoE, GLM-4-MoE, dots, ERNIE 4.5-MoE.
Which experts a router chooses is found out by calling it (hfaccel.engine.layers.routers)."""

from __future__ import annotations

from dataclasses import replace

from hfaccel.engine.layers.families.llama import ERNIE, LLAMA

MIXTRAL = replace(
    LLAMA,
    name="Mixtral",
    gate="",
    up="",
    activation="",
    down="",
    experts="mlp.experts",
    router="mlp.gate",
)
SHARED = replace(
    MIXTRAL,
    name="GLM-4-MoE",
    gate="mlp.shared_experts.gate_proj",
    up="mlp.shared_experts.up_proj",
    activation="mlp.shared_experts.act_fn",
    down="mlp.shared_experts.down_proj",
)
DOTS = replace(SHARED, name="dots", query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
QWEN2_MOE = replace(
    MIXTRAL,
    name="Qwen2-MoE",
    gate="mlp.shared_expert.gate_proj",
    up="mlp.shared_expert.up_proj",
    activation="mlp.shared_expert.act_fn",
    down="mlp.shared_expert.down_proj",
    shared_gate="mlp.shared_expert_gate",
)
GRANITE = replace(
    MIXTRAL, name="Granite-MoE", experts="block_sparse_moe.experts", router="block_sparse_moe.router"
)
GRANITE_SHARED = replace(
    GRANITE,
    name="Granite-MoE with a shared expert",
    gate_up="shared_mlp.input_linear",
    activation="shared_mlp.activation",
    down="shared_mlp.output_linear",
)

# A layer with more parts has those of one with fewer: what has most is tried first.
FAMILIES = (
    QWEN2_MOE,
    DOTS,
    replace(DOTS, name="EXAONE-MoE without positions", unrotated=True),
    SHARED,
    replace(SHARED, name="ERNIE 4.5-MoE", pairs=True, call=ERNIE.call),
    replace(MIXTRAL, name="Qwen3-MoE", query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"),
    MIXTRAL,
    GRANITE_SHARED,
    GRANITE,
    replace(MIXTRAL, name="ERNIE 4.5-MoE without a shared expert", pairs=True, call=ERNIE.call),
)

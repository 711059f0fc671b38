"""How a router chooses experts is found out by calling a twin of it."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from hfaccel.engine.layers.routers import CORRECTION, Choice, choice_of, correction_of

SIZES = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
SIZES |= dict(
    vocab_size=100, intermediate_size=96, num_experts_per_tok=2, num_local_experts=12, num_experts=12
)
SIZES |= dict(n_routed_experts=12, moe_num_experts=12, moe_intermediate_size=32, moe_k=2)
SIZES |= dict(n_shared_experts=1)
GROUPS = dict(n_group=4, topk_group=2, first_k_dense_replace=0, routed_scaling_factor=2.5)
LATENT = dict(q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16)
# Of fewer experts than two groups have at the top, groups would make no difference.
LIMITED = dict(topk_method="group_limited_greedy", num_experts_per_tok=3)
OF_GROUPS = Choice(2, True, True, groups=4, chosen_groups=2, counted=2, scale=2.5)
MODELS = {
    "Mixtral": ({}, Choice(2)),
    "GptOss": ({}, Choice(2)),
    "GraniteMoe": ({}, Choice(2)),
    "Qwen2Moe": (dict(norm_topk_prob=False), Choice(2, normalised=False)),
    "Ernie4_5_Moe": (dict(moe_norm_min=0.25), Choice(2, least=0.25)),
    "Glm4Moe": (dict(**GROUPS, norm_topk_prob=True), OF_GROUPS),
    "Dots1": (dict(**GROUPS, norm_topk_prob=False), Choice(2, True, False, 4, 2, 2, scale=2.5)),
    "MiniMaxM2": ({}, Choice(2, True)),
    "HYV3": (dict(router_scaling_factor=2.0), Choice(2, True, scale=2.0)),
    "DeepseekV3": (dict(**GROUPS, **LATENT), OF_GROUPS),
    "DeepseekV2": (dict(**GROUPS, **LATENT, **LIMITED), Choice(3, False, False, 4, 2, 1, scale=2.5)),
    "DeepseekV2Greedy": (dict(**GROUPS, **LATENT, topk_method="greedy"), Choice(2, False, False, scale=2.5)),
}


def module_of(name):
    """The module of router and experts."""
    settings, _ = MODELS[name]
    config = getattr(transformers, f"{name.removesuffix('Greedy')}Config")(**{**SIZES, **settings})
    model = transformers.AutoModel.from_config(config).eval()
    return next(each for each in model.modules() if hasattr(each, "experts"))


def router_in(block):
    return next(each for each in block.children() if type(each).__name__.endswith("Router"))


@pytest.mark.parametrize("name", MODELS)
def test_known_ways(name):
    block = module_of(name)
    assert choice_of(router_in(block), block) == MODELS[name][1]


def test_the_router_own_numbers_hide_nothing():
    """Those of a new model are all 0."""
    block = module_of("DeepseekV3")
    router = router_in(block)
    table, name = correction_of(router, block)
    assert name == CORRECTION
    for numbers in (router.weight.data, table[name]):
        numbers.zero_()
    assert choice_of(router, block) == OF_GROUPS
    assert not router.weight.any() and not table[name].any()


def test_attributes_that_change_make_another_choice():
    block = module_of("DeepseekV3")
    router = router_in(block)
    router.norm_topk_prob, router.top_k, router.topk_group = False, 3, 1
    assert choice_of(router, block) == Choice(3, True, False, 4, 1, 2, scale=2.5)


BESIDE = nn.Module()


class Router(nn.Module):
    def __init__(self, scores):
        super().__init__()
        self.weight, self.top_k, self.scores = nn.Parameter(torch.zeros(12, 64)), 2, scores

    def forward(self, rows):
        products = nn.functional.linear(rows, self.weight)
        weights, index = self.scores(products).topk(self.top_k)
        return products, weights, index


def test_other_ways():
    assert choice_of(Router(torch.sigmoid), BESIDE) == Choice(2, True, False)
    assert choice_of(Router(torch.tanh), BESIDE) is None
    assert choice_of(Router(lambda products: products.softmax(0)), BESIDE) is None


def test_a_router_that_takes_more_is_none_that_is_known():
    class Other(Router):
        def forward(self, rows, correction):
            return super().forward(rows + correction)

    assert choice_of(Other(torch.sigmoid), BESIDE) is None

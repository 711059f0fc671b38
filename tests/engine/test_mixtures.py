"""Decoder layers whose feed-forward is a mixture of experts run in one call, router included."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from conftest import needs_kernels
from torch import nn

import hfaccel
from hfaccel.engine.experts.experts import PackedExperts
from hfaccel.engine.kernels import Kind
from hfaccel.engine.layers.call import Call
from hfaccel.engine.layers.layer import FusedLayer
from hfaccel.engine.layers.routers import CORRECTION
from hfaccel.precision import QUANTIZED

pytestmark = needs_kernels

SIZES = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
SIZES |= dict(vocab_size=100, intermediate_size=96, num_experts_per_tok=2, pad_token_id=0)
QWEN = dict(num_experts=5, moe_intermediate_size=72)
ERNIE = dict(moe_num_experts=5, moe_k=2, moe_intermediate_size=72)
GROUPS = dict(n_routed_experts=6, n_group=3, topk_group=2, moe_intermediate_size=72)
GROUPS |= dict(first_k_dense_replace=1, routed_scaling_factor=1.5)
EXAONE = dict(num_experts=6, sliding_window=4, num_hidden_layers=4)  # the fourth without positions
LATENT = dict(q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16)
LATENT |= dict(num_key_value_heads=4)
GRANITE = dict(num_local_experts=5, residual_multiplier=0.4, attention_multiplier=0.2)
MODELS = {
    "Qwen3-MoE": (transformers.Qwen3MoeConfig, dict(**QWEN, norm_topk_prob=True)),
    "Qwen3-MoE, whole softmax": (transformers.Qwen3MoeConfig, dict(**QWEN, norm_topk_prob=False)),
    "Qwen3-MoE, one dense": (transformers.Qwen3MoeConfig, dict(**QWEN, mlp_only_layers=[1])),
    "Mixtral": (transformers.MixtralConfig, dict(num_local_experts=5, sliding_window=None)),
    "OLMoE": (transformers.OlmoeConfig, dict(num_experts=5)),
    "GPT-OSS": (transformers.GptOssConfig, dict(num_local_experts=5, sliding_window=4)),
    "Qwen2-MoE": (transformers.Qwen2MoeConfig, dict(**QWEN, shared_expert_intermediate_size=80)),
    "Ernie": (transformers.Ernie4_5_MoeConfig, dict(**ERNIE, moe_num_shared_experts=1)),
    "Ernie, a least sum": (transformers.Ernie4_5_MoeConfig, dict(**ERNIE, moe_norm_min=0.7)),
    "Ernie, none shared": (transformers.Ernie4_5_MoeConfig, dict(**ERNIE, moe_num_shared_experts=0)),
    "GLM-4-MoE": (transformers.Glm4MoeConfig, dict(**GROUPS, norm_topk_prob=True)),
    "dots": (transformers.Dots1Config, dict(**GROUPS, n_shared_experts=2, norm_topk_prob=False)),
    "MiniMax-M2": (transformers.MiniMaxM2Config, dict(num_local_experts=5)),
    "HunYuan 3": (transformers.HYV3Config, dict(num_local_experts=5, moe_intermediate_size=72)),
    "Granite-MoE": (transformers.GraniteMoeConfig, GRANITE),
    "Granite-MoE, one shared": (
        transformers.GraniteMoeSharedConfig,
        dict(**GRANITE, shared_intermediate_size=64),
    ),
    "Granite-MoE, sinks": (transformers.GraniteMoeSWAConfig, dict(**GRANITE, sliding_window=4)),
    "Granite-MoE, one shared, sinks": (
        transformers.GraniteMoeSWAConfig,
        dict(**GRANITE, sliding_window=4, shared_intermediate_size=64),
    ),
    "EXAONE-MoE": (transformers.ExaoneMoeConfig, dict(**GROUPS, **EXAONE)),
}
LEFT = {"DeepSeek-V3": (transformers.DeepseekV3Config, dict(**GROUPS, **LATENT))}


def model(name="Qwen3-MoE", **more):
    torch.manual_seed(0)
    config, settings = {**MODELS, **LEFT}[name]
    made = transformers.AutoModelForCausalLM.from_config(config(**{**SIZES, **settings, **more})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(1 if parameter.dim() == 1 else 0, 0.2)
        for name, buffer in made.named_buffers():
            if name.endswith(CORRECTION):
                buffer.normal_(0, 0.2)
    return made


def ids(rows=2, length=9):
    return torch.randint(1, 100, (rows, length), generator=torch.Generator().manual_seed(0))


def logits(made, given=None):
    with torch.inference_mode():
        return made(ids() if given is None else given).logits


def pair(name="Qwen3-MoE", **options):
    stock = model(name)
    return hfaccel.optimize(copy.deepcopy(stock), **options), stock


def assert_near(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (1, 60)])
@pytest.mark.parametrize("name", MODELS)
def test_all_layers_are_one_call(name, shape):
    fast, stock = pair(name)
    assert all(isinstance(layer, FusedLayer) for layer in fast.model.layers)
    assert_near(logits(fast, ids(*shape)), logits(stock, ids(*shape)))
    assert not hfaccel.report(fast).stock_calls


def test_layers_with_and_without_a_mixture_are_one_call(monkeypatch):
    fast, _ = pair("Qwen3-MoE, one dense")
    counts, run = [], Call.run
    monkeypatch.setattr(Call, "run", lambda self, *args: counts.append(len(args[1])) or run(self, *args))
    logits(fast)
    assert counts == [3]


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_stock(name):
    fast, stock = pair(name)
    settings = dict(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
    given = dict(input_ids=ids(), attention_mask=torch.ones_like(ids()))
    given["attention_mask"][1, :4] = 0
    assert fast.generate(**given, **settings).equal(stock.generate(**given, **settings))
    assert not hfaccel.report(fast).stock_calls


@pytest.mark.parametrize("name", LEFT)
def test_other_mixtures_keep_their_forward_around_packed_experts(name):
    fast, stock = pair(name)
    mixed = [layer for layer in fast.model.layers if hasattr(layer.mlp, "experts")]
    assert mixed and not any(isinstance(layer, FusedLayer) for layer in mixed)
    assert all(isinstance(layer.mlp.experts, PackedExperts) for layer in mixed)
    assert_near(logits(fast), logits(stock))


@pytest.mark.parametrize("kind", [Kind.BFLOAT16, *map(Kind.of, QUANTIZED)])
def test_rounded(kind):
    """As the same weights give without rounding of activations, which may change a choice of experts."""
    options = dict(dtype=torch.bfloat16) if kind is Kind.BFLOAT16 else dict(quantization=kind.label)
    fast, stock = pair(**options)
    stock.load_state_dict(fast.state_dict())
    stock.float()
    got, wanted = logits(fast), logits(stock)
    lost = (got - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert 0 < lost.median() < 0.05
    assert {weight.kind for weight in fast.model.layers[0].mlp.experts.hfaccel_weights()} == {kind}


def test_a_checkpoint_in_bfloat16():
    stock = model().bfloat16()
    fast = hfaccel.optimize(copy.deepcopy(stock))
    wanted = logits(stock.float())
    lost = (logits(fast).float() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert lost.median() < 0.05 and not hfaccel.report(fast).stock_calls


def test_an_expert_that_nobody_chose_is_not_read():
    """Its bytes are no numbers any more, and no result notices."""
    fast, stock = pair()
    one = ids(1, 1)
    with torch.inference_mode():
        chosen = [scores[0].topk(2).indices for scores in stock(one, output_router_logits=True).router_logits]
    before = logits(fast, one)
    for layer, experts in zip(fast.model.layers, chosen, strict=True):
        for weight in layer.mlp.experts.hfaccel_weights():
            for cold in {*range(5)} - {*experts.tolist()}:
                weight.memory[cold * weight.packing.step : (cold + 1) * weight.packing.step] = 0xFF
    assert logits(fast, one).equal(before) and not hfaccel.report(fast).stock_calls
    assert logits(fast).isnan().any()


# What is out of the ordinary


def _gain_expert(layer):
    layer.mlp.gate.top_k = 3


def _other_activation(layer):
    layer.mlp.experts.act_fn = nn.ReLU()


def _hooked(layer):
    layer.mlp.gate.register_forward_hook(lambda module, given, result: (result[0], result[1] * 2, result[2]))


def _hooked_experts(layer):
    layer.mlp.experts.register_forward_hook(lambda module, given, result: result * 2)


def _other_router(layer):
    with torch.no_grad():
        layer.mlp.gate.weight.neg_()


def _new_router(layer):
    layer.mlp.gate.weight = nn.Parameter(layer.mlp.gate.weight.detach() * -1)


def _other_experts(layer):
    with torch.no_grad():
        layer.mlp.experts.down_proj.mul_(2)


def _new_experts(layer):
    down = layer.mlp.experts.down_proj
    layer.mlp.experts.down_proj = nn.Parameter(down.detach().clone().contiguous() * 2)


def _turned(vector):
    with torch.no_grad():
        vector.copy_(-vector.flip(-1))


# What the kernels read beside matrices and norms, by the model that has it.
VECTORS = {
    "sinks": ("GPT-OSS", lambda layer: layer.self_attn.sinks),
    "bias": ("GPT-OSS", lambda layer: layer.mlp.router.bias),
    "biases of experts": ("GPT-OSS", lambda layer: layer.mlp.experts.gate_up_proj_bias),
    "correction": ("GLM-4-MoE", lambda layer: layer.mlp.gate.e_score_correction_bias),
    "correction within": ("Ernie", lambda layer: layer.mlp.gate.moe_statics.e_score_correction_bias),
    "correction beside": ("MiniMax-M2", lambda layer: layer.mlp.e_score_correction_bias),
    "gate": ("Qwen2-MoE", lambda layer: layer.mlp.shared_expert_gate.weight),
    "expert of all": ("Qwen2-MoE", lambda layer: layer.mlp.shared_expert.up_proj.weight),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vector", VECTORS)
def test_changes_of_vectors_are_seen(vector, dtype):
    """Those in bfloat16 are read from copies."""
    name, find = VECTORS[vector]
    stock = model(name).to(dtype)
    fast = hfaccel.optimize(copy.deepcopy(stock), inplace=True)
    before = logits(fast)
    for each in (fast, stock):
        _turned(find(each.model.layers[1]))
    assert not logits(fast).allclose(before, atol=1e-2)
    lost = (logits(fast) - logits(stock)).float().norm(dim=-1) / logits(stock).float().norm(dim=-1)
    assert lost.median() < (1e-4 if dtype is torch.float32 else 0.1)
    assert not hfaccel.report(fast).stock_calls


CHANGES = [_gain_expert, _other_activation, _hooked, _hooked_experts, _other_router, _new_router]
CHANGES += [_other_experts, _new_experts]


@pytest.mark.filterwarnings("ignore::hfaccel.errors.StockPathWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(change):
    fast, stock = pair()
    before = logits(fast)
    for each in (fast, stock):
        change(each.model.layers[1])
    assert not logits(fast).allclose(before, atol=1e-2)
    assert_near(logits(fast), logits(stock))


@pytest.mark.filterwarnings("ignore::hfaccel.errors.StockPathWarning")
@pytest.mark.parametrize("by", ["argument", "config"])
def test_scores_of_routers_are_collected(by):
    fast, stock = pair()
    logits(fast)
    asked = dict(output_router_logits=True) if by == "argument" else {}
    with torch.inference_mode():
        for each in (fast, stock):
            each.config.output_router_logits = by == "config"
        got, wanted = (each.model(ids(), **asked).router_logits for each in (fast, stock))
    assert len(got) == len(wanted) == 3
    for mine, its in zip(got, wanted, strict=True):
        assert_near(mine, its)


def test_moved_weights_are_found_again():
    fast, stock = pair()
    wanted = logits(fast)
    hfaccel.memory.share(fast)
    assert logits(fast).equal(wanted) and not hfaccel.report(fast).stock_calls
    fast.train()
    fast.eval()
    assert_near(logits(fast), logits(stock))
    hfaccel.restore(fast)
    assert_near(logits(fast), logits(stock))

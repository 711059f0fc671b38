"""Small random decoders of many architectures: their layers are fused and give the tokens and logits of their
own code, with padding, beams, sliding windows and without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from encoders import cosines
from torch import nn
from transformers import AutoModelForCausalLM

import hfaccel
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers.call import Call

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

WIDE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
GROUPED = WIDE | {"num_key_value_heads": 2}
HEADS_OF_32 = GROUPED | {"head_dim": 32}  # wider together than the hidden states
ODD = WIDE | {"hidden_size": 96, "intermediate_size": 160}  # heads of 24
WINDOW = {"sliding_window": 6, "num_hidden_layers": 5}
SOFT = {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0}
GPT = {"n_embd": 96, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
OPT = {
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "init_std": 0.3,
}
XGLM = {"d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4, "init_std": 0.3}
NEO = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "window_size": 6, "initializer_range": 0.3}
NEO |= {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64}
BLOOM = {"hidden_size": 96, "n_layer": 2, "n_head": 6, "initializer_range": 0.3}
MPT = {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "initializer_range": 0.3}
FALCON = WIDE | {"num_attention_heads": 4}
EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}
GRANITE = {"residual_multiplier": 0.3, "attention_multiplier": 0.2}

# name -> class of the config, its values, and the families of the layers
MODELS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "Llama": ("LlamaConfig", GROUPED, {"Llama"}),
    "Mistral": ("MistralConfig", HEADS_OF_32 | WINDOW, {"Llama"}),
    "Qwen2 with windows": (
        "Qwen2Config",
        GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 2},
        {"Llama"},
    ),
    "Qwen3": ("Qwen3Config", HEADS_OF_32, {"Qwen3"}),
    "Phi-3": ("Phi3Config", GROUPED, {"Phi-3"}),
    "Gemma": ("GemmaConfig", HEADS_OF_32, {"Llama"}),
    "Gemma 2": ("Gemma2Config", HEADS_OF_32 | WINDOW | SOFT, {"Gemma 2"}),
    "Gemma 3": ("Gemma3TextConfig", HEADS_OF_32 | WINDOW | {"num_hidden_layers": 7}, {"Gemma 3"}),
    "Phi": ("PhiConfig", ODD, {"Phi"}),
    "Phi with norms": ("PhiConfig", ODD | {"qk_layernorm": True}, {"Phi with norms"}),
    "GPT-NeoX": ("GPTNeoXConfig", ODD, {"GPT-NeoX"}),
    "GPT-NeoX in sequence": (
        "GPTNeoXConfig",
        WIDE | {"use_parallel_residual": False},
        {"GPT-NeoX in sequence"},
    ),
    "StableLM": ("StableLmConfig", GROUPED, {"Llama"}),
    "parallel StableLM": ("StableLmConfig", GROUPED | {"use_parallel_residual": True}, {"StableLM"}),
    "Cohere": ("CohereConfig", GROUPED, {"Cohere"}),
    "Cohere 2": ("Cohere2Config", GROUPED | WINDOW, {"Cohere", "Cohere 2 without positions"}),
    "OLMo": ("OlmoConfig", GROUPED, {"Llama"}),
    "OLMo 2": ("Olmo2Config", GROUPED, {"OLMo 2"}),
    "OLMo 3": ("Olmo3Config", GROUPED | WINDOW, {"OLMo 2"}),
    "Starcoder2": ("Starcoder2Config", GROUPED | WINDOW, {"Starcoder2"}),
    "GPT-2": ("GPT2Config", GPT, {"GPT-2"}),
    "OPT": ("OPTConfig", OPT, {"OPT"}),
    "OPT with norms after": ("OPTConfig", OPT | {"do_layer_norm_before": False}, {"OPT with norms after"}),
    "GPT-J": ("GPTJConfig", GPT | {"rotary_dim": 8}, {"GPT-J"}),
    "ERNIE 4.5": ("Ernie4_5Config", HEADS_OF_32, {"ERNIE 4.5"}),
    "GLM": ("GlmConfig", HEADS_OF_32, {"GLM"}),
    "GLM-4": ("Glm4Config", HEADS_OF_32, {"GLM-4"}),
    "EXAONE 4": ("Exaone4Config", GROUPED | WINDOW, {"OLMo 2", "EXAONE 4 without positions"}),
    "Arcee": ("ArceeConfig", GROUPED, {"Arcee"}),
    "Nemotron": ("NemotronConfig", GROUPED, {"Arcee"}),
    "HunYuan": ("HunYuanDenseV1Config", HEADS_OF_32, {"HunYuan"}),
    "HyperCLOVA X": ("HyperCLOVAXConfig", GROUPED | {"use_post_norm": True}, {"HyperCLOVA X"}),
    "VaultGemma": ("VaultGemmaConfig", HEADS_OF_32 | WINDOW | SOFT, {"VaultGemma"}),
    "Persimmon": ("PersimmonConfig", ODD | {"qk_layernorm": True}, {"Persimmon with norms"}),
    "Persimmon without norms": ("PersimmonConfig", ODD | {"qk_layernorm": False}, {"Persimmon"}),
    "GPT-BigCode": ("GPTBigCodeConfig", GPT, {"GPT-BigCode"}),
    "GPT-BigCode with many keys": ("GPTBigCodeConfig", GPT | {"multi_query": False}, {"GPT-BigCode"}),
    "CodeGen": ("CodeGenConfig", GPT | {"rotary_dim": 8, "n_head": 8}, {"CodeGen"}),
    "BioGPT": ("BioGptConfig", ODD, {"OPT"}),
    "XGLM": ("XGLMConfig", XGLM, {"XGLM"}),
    "GPT-Neo": ("GPTNeoConfig", NEO, {"GPT-Neo"}),
    "BLOOM": ("BloomConfig", BLOOM, {"BLOOM"}),
    "MPT": ("MptConfig", MPT, {"MPT"}),
    "Falcon": ("FalconConfig", FALCON, {"Falcon"}),
    "Falcon with two norms": (
        "FalconConfig",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"Falcon with two norms"},
    ),
    "Falcon with groups and one norm": (
        "FalconConfig",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        {"Falcon"},
    ),
    "Falcon with ALiBi": (
        "FalconConfig",
        FALCON | {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
        {"Falcon in sequence"},
    ),
    "Granite": ("GraniteConfig", GROUPED | GRANITE, {"Llama"}),
    "GPT-OSS": ("GptOssConfig", HEADS_OF_32 | WINDOW | EXPERTS, {"GPT-OSS"}),
    "Granite with sinks": (
        "GraniteSWAConfig",
        GROUPED | GRANITE | {"sliding_window": 6},
        {"Granite with sinks"},
    ),
    "SmolLM3": ("SmolLM3Config", GROUPED | {"num_hidden_layers": 5}, {"Llama"}),
}


def make_decoder(name: str) -> nn.Module:
    config, values, _ = MODELS[name]
    torch.manual_seed(0)
    tokens = {"vocab_size": 200, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    model = AutoModelForCausalLM.from_config(getattr(transformers, config)(**values, **tokens)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms that are 0 or 1 would hide mistakes
            parameter.data += torch.randn_like(parameter) * 0.2
    return model


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, :3] = mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(model: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    result = model.generate(
        **inputs(),
        max_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return result.sequences, torch.stack(result.logits)


def families_in(model: nn.Module) -> set[str]:
    outcomes = hfaccel.report(model).outcomes
    return {
        outcome.subject.removesuffix(" layer") for outcome in outcomes if "one function" in outcome.reason
    }


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_fused_and_give_the_same_tokens(name):
    model = make_decoder(name)
    fast = hfaccel.optimize(model)
    assert families_in(fast) == MODELS[name][2]
    for options in ({}, {"num_beams": 3}, {"use_cache": False}):
        (expected, logits), (got, near) = generated(model, **options), generated(fast, **options)
        assert torch.equal(expected, got), options
        if "num_beams" not in options:
            torch.testing.assert_close(near, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))
    assert not hfaccel.report(fast).stock_calls
    assert not [each for each in hfaccel.report(fast).outcomes if "not fused" in each.reason]


def layers_in_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each call of the kernels has, from now on."""
    counts: list[int] = []
    run = Call.run
    monkeypatch.setattr(Call, "run", lambda self, *args: counts.append(len(args[1])) or run(self, *args))
    return counts


@pytest.mark.parametrize("name", ["Gemma 2", "Gemma 3", "EXAONE 4", "Cohere 2", "GPT-Neo", "GPT-OSS"])
def test_layers_run_in_one_call_until_a_window_hides_something(name, monkeypatch):
    model = make_decoder(name)
    fast = hfaccel.optimize(model)
    counts, caches = layers_in_calls(monkeypatch), [None, None]
    layers, ids = model.config.num_hidden_layers, torch.tensor([[0, 3, 4], [5, 6, 7]])
    for past in range(3, 12):
        mask = torch.ones(2, past, dtype=torch.long)
        mask[0, 0] = 0  # padding
        with torch.inference_mode():
            results = [
                each(ids, attention_mask=mask, past_key_values=cache, use_cache=True)
                for each, cache in zip((model, fast), caches, strict=True)
            ]
        expected, got = (result.logits for result in results)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        assert (counts == [layers]) is (past <= WINDOW["sliding_window"]), past
        counts.clear()
        caches, ids = [result.past_key_values for result in results], expected[:, -1:].argmax(-1)
    assert not hfaccel.report(fast).stock_calls


def test_layers_run_together_as_far_as_they_are_given_the_same(monkeypatch):
    fast = hfaccel.optimize(make_decoder("Gemma 3"))
    counts = layers_in_calls(monkeypatch)
    with torch.inference_mode():
        fast(**inputs())
    assert counts == [5, 1, 1]  # every sixth layer has no window


@pytest.mark.parametrize(
    "name",
    [
        "Gemma 2",
        "GPT-NeoX",
        "GPT-2",
        "Cohere",
        "OLMo 2",
        "Granite",
        "BLOOM",
        "Falcon with two norms",
        "CodeGen",
        "Granite with sinks",
    ],
)
@pytest.mark.parametrize("precision", [{"dtype": torch.bfloat16}, {"quantization": "int8"}], ids=str)
def test_other_precisions_are_close(name, precision):
    model = make_decoder(name)
    fast = hfaccel.optimize(model, **precision)
    with torch.inference_mode():
        expected, got = model(**inputs()).logits, fast(**inputs()).logits
    assert families_in(fast) == MODELS[name][2]
    assert not hfaccel.report(fast).stock_calls
    assert cosines(expected[inputs()["attention_mask"] > 0], got[inputs()["attention_mask"] > 0]).min() > 0.9


def test_a_norm_that_adds_one_to_its_weight_follows_changes_of_the_weight():
    model = make_decoder("Gemma")
    fast = hfaccel.optimize(model, inplace=True)
    with torch.inference_mode():
        before = fast(**inputs()).logits
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight.mul_(-1).add_(0.3)
    with torch.inference_mode():
        got = fast(**inputs()).logits
        expected = hfaccel.restore(fast)(**inputs()).logits
    assert not torch.allclose(before, got, rtol=0.1)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_queries_that_are_clipped_are_left_alone():
    torch.manual_seed(0)
    config = transformers.OlmoConfig(**GROUPED, vocab_size=200, clip_qkv=8.0)
    fast = hfaccel.optimize(AutoModelForCausalLM.from_config(config).eval())
    assert not families_in(fast)

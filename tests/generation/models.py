"""Small models of every architecture that generates, with random weights, and prompts for them.

Their weights are larger than those of a new model, so that the two likeliest tokens are further apart than
rounding and the tokens vary: equality of tokens is then exact.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch

import hfaccel

VOCABULARY, LIMIT, NEW, WINDOW = 211, 64, 16, 8
NO_END = VOCABULARY  # a token that no model here generates; None would mean that of the configuration
MARGIN = 1e-3  # least distance between the two highest logits; rounding in float32 stays below 1e-4
VARIED = 9  # least number of distinct tokens in three texts
# Standard deviations of weights, the first for a width of one. Embeddings are small: a model with tied
# weights would repeat its last token.
SPREAD, EMBEDDED = 2.8, 0.1
WEAKER = {"GPT-OSS": 0.6}  # YaRN makes its scores larger already, which multiplies rounding
# What comes from the encoder is alike at every step: it must not outweigh the tokens before.
FROM_ENCODER, CROSS = 0.2, ("encoder_attn.out_proj.weight", "cross_attn.out_proj.weight")
# T5 does not divide scores by the root of the head size; as large as others' they would multiply rounding.
UNSCALED, QUERIES = 0.25, ("SelfAttention.q.weight", "EncDecAttention.q.weight")
# Seeds for which test_tokens_stand_far_apart holds; others have 0.
# fmt: off
SEEDS = {
    "BART, tied": 1, "Falcon, alibi": 1, "GLM": 1, "Gemma2": 1, "Llama, tied": 1, "OLMo": 1, "Persimmon": 1,
    "Phi": 1, "Phi3, window": 1, "Qwen2": 1, "Qwen2, window": 1, "Qwen3": 1, "Switch": 1, "BLOOM": 2,
    "GPT-2": 2, "GPT-BigCode": 2, "GPT-NeoX": 2, "GPT-NeoX, serial": 2, "Gemma": 2, "Granite": 2,
    "Llama": 2, "Mistral": 2, "Mistral, window": 2, "OPT": 2, "T5, gated": 2, "mBART": 2, "mT5": 2,
    "BioGPT": 3, "Ernie 4.5": 3, "MPT": 3, "Phi, norms": 3, "Speech2Text": 3, "Cohere2": 4, "Falcon": 5,
    "Falcon, new": 5, "T5": 5, "UMT5": 5, "OPT, norms behind": 8, "SmolLM3": 9, "LED": 11, "ProphetNet": 11,
    "BlenderbotSmall": 12, "T5, tied": 17, "Nemotron": 20, "Qwen2-MoE": 30, "GPT-OSS": 36, "BART": 39,
    "Marian": 40, "Mixtral": 57,
}
# fmt: on
IDS = dict(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2)
TEXT = {
    **IDS,
    **dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4, head_dim=16),
    **dict(intermediate_size=128, max_position_embeddings=LIMIT),
}
WHOLE = {name: value for name, value in TEXT.items() if name not in ("num_key_value_heads", "head_dim")}
OLD = {**IDS, **dict(n_embd=64, n_layer=2, n_head=4, n_positions=LIMIT)}
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
NARROW = dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])
UNTIED = dict(tie_word_embeddings=False)  # or few distinct tokens would be generated
FALCON = {name: value for name, value in WHOLE.items() if name not in ("intermediate_size",)}

# name: (class, what its configuration says)
CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", TEXT),
    "Llama, biases": ("LlamaForCausalLM", {**TEXT, "attention_bias": True, "mlp_bias": True}),
    "Llama, long": (
        "LlamaForCausalLM",
        {**TEXT, "rope_parameters": dict(rope_type="linear", factor=4.0, rope_theta=1e4)},
    ),
    "Llama, tied": ("LlamaForCausalLM", {**TEXT, "tie_word_embeddings": True}),
    "Qwen2": ("Qwen2ForCausalLM", TEXT),
    "Qwen2, window": ("Qwen2ForCausalLM", {**TEXT, "use_sliding_window": True, **NARROW}),
    "Qwen3": ("Qwen3ForCausalLM", TEXT),
    "Qwen2-MoE": ("Qwen2MoeForCausalLM", {**TEXT, **EXPERTS, "shared_expert_intermediate_size": 64}),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", {**TEXT, **EXPERTS}),
    "Mistral": ("MistralForCausalLM", {**TEXT, "sliding_window": None}),
    "Mistral, window": ("MistralForCausalLM", {**TEXT, "sliding_window": WINDOW}),
    "Ministral": ("MinistralForCausalLM", {**TEXT, **NARROW}),
    "Mixtral": ("MixtralForCausalLM", {**TEXT, **LOCAL}),
    "Gemma": ("GemmaForCausalLM", TEXT),
    "Gemma2": ("Gemma2ForCausalLM", {**TEXT, **NARROW, **UNTIED, "query_pre_attn_scalar": 16}),
    "Gemma3": ("Gemma3ForCausalLM", {**TEXT, **NARROW, **UNTIED, "query_pre_attn_scalar": 16}),
    "Phi": ("PhiForCausalLM", {**TEXT, "partial_rotary_factor": 0.5}),
    "Phi, norms": ("PhiForCausalLM", {**TEXT, "qk_layernorm": True}),
    "Phi3": ("Phi3ForCausalLM", {**TEXT, "sliding_window": None}),
    "Phi3, window": ("Phi3ForCausalLM", {**TEXT, "sliding_window": WINDOW}),
    "SmolLM3": ("SmolLM3ForCausalLM", {**TEXT, "no_rope_layer_interval": 2}),
    "OLMo": ("OlmoForCausalLM", {**TEXT, "clip_qkv": 3.0}),
    "OLMo2": ("Olmo2ForCausalLM", TEXT),
    "OLMoE": ("OlmoeForCausalLM", {**TEXT, "num_experts": 4, "num_experts_per_tok": 2}),
    "Falcon": ("FalconForCausalLM", {**FALCON, "new_decoder_architecture": False, "multi_query": True}),
    "Falcon, new": ("FalconForCausalLM", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 4}),
    "Falcon, alibi": ("FalconForCausalLM", {**FALCON, "alibi": True, "parallel_attn": False, "bias": True}),
    "GPT-2": ("GPT2LMHeadModel", OLD),
    "GPT-Neo": (
        "GPTNeoForCausalLM",
        {**IDS, **dict(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128, window_size=WINDOW)}
        | dict(attention_types=[[["global", "local"], 1]], max_position_embeddings=LIMIT),
    ),
    "GPT-NeoX": ("GPTNeoXForCausalLM", WHOLE),
    "GPT-NeoX, serial": ("GPTNeoXForCausalLM", {**WHOLE, "use_parallel_residual": False}),
    "GPT-J": ("GPTJForCausalLM", {**OLD, "rotary_dim": 8}),
    "GPT-BigCode": ("GPTBigCodeForCausalLM", {**OLD, "multi_query": True}),
    "CodeGen": ("CodeGenForCausalLM", {**OLD, "rotary_dim": 8}),
    "OPT": ("OPTForCausalLM", {**WHOLE, "ffn_dim": 128, "word_embed_proj_dim": 128}),
    "OPT, norms behind": (
        "OPTForCausalLM",
        {**WHOLE, "ffn_dim": 128, "word_embed_proj_dim": 64, "do_layer_norm_before": False},
    ),
    "BLOOM": ("BloomForCausalLM", {**IDS, **dict(hidden_size=64, n_layer=2, n_head=4)}),
    "MPT": (
        "MptForCausalLM",
        {**IDS, **dict(d_model=64, n_heads=4, n_layers=2, max_seq_len=LIMIT, use_cache=True)},
    ),
    "StableLM": ("StableLmForCausalLM", {**TEXT, "partial_rotary_factor": 0.5}),
    "StableLM, norms": ("StableLmForCausalLM", {**TEXT, "qk_layernorm": True, "use_parallel_residual": True}),
    "Cohere": ("CohereForCausalLM", {**TEXT, "use_qk_norm": True, "logit_scale": 1.0}),
    "Cohere2": ("Cohere2ForCausalLM", {**TEXT, **NARROW, "logit_scale": 1.0}),
    "Granite": ("GraniteForCausalLM", {**TEXT, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "Starcoder2": ("Starcoder2ForCausalLM", {**TEXT, "sliding_window": WINDOW}),
    "GPT-OSS": ("GptOssForCausalLM", {**TEXT, **LOCAL, **NARROW}),
    "GLM": ("GlmForCausalLM", {**TEXT, "partial_rotary_factor": 0.5}),
    "GLM4": ("Glm4ForCausalLM", {**TEXT, "partial_rotary_factor": 0.5}),
    "Helium": ("HeliumForCausalLM", TEXT),
    "Ernie 4.5": ("Ernie4_5ForCausalLM", TEXT),
    "Nemotron": ("NemotronForCausalLM", TEXT),
    "Persimmon": ("PersimmonForCausalLM", WHOLE),
    "EXAONE 4": ("Exaone4ForCausalLM", {**TEXT, **NARROW}),
    "BioGPT": ("BioGptForCausalLM", WHOLE),
    "RoBERTa": ("RobertaForCausalLM", {**WHOLE, **UNTIED, "is_decoder": True}),
    "DeepSeek-V3": (
        "DeepseekV3ForCausalLM",
        {**TEXT, **dict(num_key_value_heads=8, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1)}
        | dict(moe_intermediate_size=64, n_group=2, topk_group=1, first_k_dense_replace=1)
        | dict(q_lora_rank=64, kv_lora_rank=64, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16),
    ),
    "LFM2": ("Lfm2ForCausalLM", {**TEXT, "layer_types": ["conv", "full_attention"]}),
}

START = dict(decoder_start_token_id=1, forced_eos_token_id=None, forced_bos_token_id=None)
T5 = {**IDS, **START, **UNTIED, **dict(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)}
GATED = dict(feed_forward_proj="gated-gelu")
BART = {**IDS, **START, **UNTIED, **dict(d_model=64, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=128)}
BART |= dict(encoder_attention_heads=4, decoder_attention_heads=4, decoder_ffn_dim=128)
BART |= dict(max_position_embeddings=LIMIT)
SPEECH = {**BART, **dict(max_source_positions=30, max_target_positions=LIMIT, num_mel_bins=20)}
SPEECH |= dict(suppress_tokens=None, begin_suppress_tokens=None)
LED = {**BART, **dict(max_encoder_position_embeddings=LIMIT, max_decoder_position_embeddings=LIMIT)}
PROPHET = {
    **IDS,
    **START,
    **UNTIED,
    **dict(hidden_size=64, num_encoder_layers=2, num_decoder_layers=2, ngram=2),
}
PROPHET |= dict(num_encoder_attention_heads=4, num_decoder_attention_heads=4, encoder_ffn_dim=128)
PROPHET |= dict(decoder_ffn_dim=128, max_position_embeddings=LIMIT)
IMAGE = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=32)

# name: (class, what its configuration says)
ENCODER_DECODER: dict[str, tuple[str, dict[str, Any]]] = {
    "T5": ("T5ForConditionalGeneration", T5),
    "T5, gated": ("T5ForConditionalGeneration", {**T5, **GATED}),
    "T5, tied": ("T5ForConditionalGeneration", {**T5, "tie_word_embeddings": True}),
    "mT5": ("MT5ForConditionalGeneration", {**T5, **GATED}),
    "UMT5": ("UMT5ForConditionalGeneration", {**T5, **GATED}),
    "BART": ("BartForConditionalGeneration", BART),
    "BART, tied": ("BartForConditionalGeneration", {**BART, "tie_word_embeddings": True}),
    "mBART": ("MBartForConditionalGeneration", BART),
    "Marian": ("MarianMTModel", BART),
    "Pegasus": ("PegasusForConditionalGeneration", BART),
    "M2M100": ("M2M100ForConditionalGeneration", BART),
    "BlenderbotSmall": ("BlenderbotSmallForConditionalGeneration", BART),
    "LED": ("LEDForConditionalGeneration", {**LED, "attention_window": 4}),
    "ProphetNet": ("ProphetNetForConditionalGeneration", PROPHET),
    "Switch": (
        "SwitchTransformersForConditionalGeneration",
        {**T5, "num_experts": 4, "num_decoder_layers": 2},
    ),
    "Whisper": ("WhisperForConditionalGeneration", SPEECH),
    "Speech2Text": (
        "Speech2TextForConditionalGeneration",
        {**SPEECH, **dict(input_feat_per_channel=20, conv_channels=64, max_source_positions=LIMIT)},
    ),
    "ViT and GPT-2": ("VisionEncoderDecoderModel", {}),
}
NAMES = [*CAUSAL, *ENCODER_DECODER]
# Their decoders' layers run in the kernels.
CROSSING = ["T5", "T5, gated", "T5, tied", "mT5", "UMT5", "BART", "BART, tied", "mBART", "Marian", "Pegasus"]
CROSSING += ["M2M100", "BlenderbotSmall", "LED", "Whisper", "Speech2Text", "ViT and GPT-2"]

# What rarer arguments and caches are tried on: plain, with a window, both, without rotary positions, with
# experts and sinks; and with an encoder.
DECODERS = ["Llama", "Mistral, window", "Gemma2", "GPT-2", "GPT-OSS"]
ENCODED = ["T5", "BART", "Whisper"]


def _configuration(name: str) -> tuple[Any, Any]:
    """The class and the configuration of a model."""
    import transformers

    if name == "ViT and GPT-2":
        return transformers.VisionEncoderDecoderModel, _vision()
    kind, settings = CAUSAL[name] if name in CAUSAL else ENCODER_DECODER[name]
    cls = getattr(transformers, kind)
    return cls, cls.config_class(**settings)


def _vision() -> Any:
    import transformers

    text = transformers.GPT2Config(**OLD, add_cross_attention=True)
    image = transformers.ViTConfig(**IMAGE, patch_size=16)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(image, text)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    return config


@cache
def stock(name: str) -> Any:
    """As transformers makes it; no other tree shares its weights."""
    cls, config = _configuration(name)
    torch.manual_seed(SEEDS.get(name, 0))
    model = cls(config).eval()
    spread = WEAKER.get(name, 1) * SPREAD / max(64, model.get_input_embeddings().weight.shape[1]) ** 0.5
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases: 0 and 1 would hide that one was left out
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            else:
                parameter.normal_(std=spread * _share(path))
        model.get_input_embeddings().weight.mul_(EMBEDDED / spread)
    return model


def _share(path: str) -> float:
    return FROM_ENCODER if path.endswith(CROSS) else UNSCALED if path.endswith(QUERIES) else 1.0


@cache
def optimized(name: str) -> Any:
    return hfaccel.optimize(copy.deepcopy(stock(name)))


def prompt(name: str, count: int = 3) -> dict[str, Any]:
    """Texts of 11, 7 and 3 tokens, padded on the side where the model expects it, or images, or sounds."""
    generator = torch.Generator().manual_seed(1)
    if name == "ViT and GPT-2":
        return {"pixel_values": torch.randn(3, 3, 32, 32, generator=generator)[:count]}
    if name == "Whisper":
        return {"input_features": torch.randn(3, 20, 60, generator=generator)[:count]}
    side = "left" if name in CAUSAL else "right"
    ids = torch.randint(5, VOCABULARY, (3, 11), generator=generator)
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[1, 7:] = 0
    mask[2, 3:] = 0
    mask = mask.flip(1) if side == "left" else mask
    if name == "Speech2Text":
        sounds, mask = torch.randn(3, 44, 20, generator=generator), mask.repeat_interleave(4, 1)
        return {"input_features": sounds[:count], "attention_mask": mask[:count]}
    return {"input_ids": ids.masked_fill(mask == 0, 0)[:count], "attention_mask": mask[:count]}

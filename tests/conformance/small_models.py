"""Small models of every architecture, with random weights, and inputs that fit them.

Nothing is known here about single architectures, except for what no rule finds (SPECIAL): sizes are made
small wherever a configuration has an attribute of that name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

TASKS = (
    "MASKED_LM",
    "SEQUENCE_CLASSIFICATION",
    "TOKEN_CLASSIFICATION",
    "QUESTION_ANSWERING",
    "IMAGE_CLASSIFICATION",
    "OBJECT_DETECTION",
    "AUDIO_CLASSIFICATION",
)

WIDTH, WIDE, HEADS, VOCABULARY = 64, 128, 4, 1000
SMALL = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "dim", "n_embd", "emb_dim", "embedding_size", "encoder_hidden_dim"), WIDTH
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers"), 2
    ),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "num_key_value_heads"), HEADS),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), WIDE),
    **dict.fromkeys(("ffn_dim", "moe_intermediate_size", "n_inner"), WIDE),
    **dict.fromkeys(("vocab_size", "encoder_vocab_size"), VOCABULARY),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    "num_experts_per_tok": 2,
    "head_dim": WIDTH // HEADS,
    "d_kv": WIDTH // HEADS,
    "image_size": 64,
    "num_labels": 3,
}
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "vocab_size", "num_labels")
IDS = (
    "bos_token_id",
    "eos_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
    "decoder_start_token_id",
)

# What a configuration needs besides: sizes that must fit each other.
RESNET = dict(model_type="resnet", embedding_size=16, hidden_sizes=[16, 32, 64, 64], depths=[1] * 4)
LAST = dict(backbone_config={**RESNET, "out_features": ["stage4"]})
LATENT = dict(qk_rope_head_dim=16, qk_nope_head_dim=16, head_dim=16, v_head_dim=16)
DISTANCES = dict(relative_attention=True, pos_att_type=["c2p", "p2c"])
SPECIAL: dict[str, dict[str, Any]] = {
    "xmod": {"default_language": "en_XX"},
    "funnel": {"bos_token_id": 1, "eos_token_id": 2},
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "deberta-v2": {**DISTANCES, "position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "perceiver": {"num_latents": 16, "d_latents": 64, "num_self_attends_per_block": 1, "d_model": 64},
    "convnext": {"num_stages": 4},
    "convnextv2": {"num_stages": 4},
    **dict.fromkeys(("deepseek_v3", "axk1", "mistral4"), LATENT),
    "qwen3_next": {"num_hidden_layers": 4},
    "qwen3_5_text": {"num_hidden_layers": 4},
    "qwen3_5": {"text_config": {"num_hidden_layers": 4}},
    "jamba": {"num_hidden_layers": 8},
    **dict.fromkeys(("detr", "conditional_detr", "dab-detr", "table-transformer"), LAST),
    "deformable_detr": dict(backbone_config={**RESNET, "out_features": ["stage2", "stage3", "stage4"]}),
}


def architectures() -> dict[str, tuple[str, str]]:
    """Model type -> (the first task that it is made for, name of the class)."""
    from transformers.models.auto import modeling_auto

    found: dict[str, tuple[str, str]] = {}
    for task in TASKS:
        for kind, names in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            found.setdefault(kind, (task, names if isinstance(names, str) else names[0]))
    return found


def small_settings(config_class: Any, level: int, special: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a small configuration. At level 1 only counts are changed, and no widths."""
    defaults = config_class()
    names = SMALL if level == 0 else COUNTS
    attributes = {*vars(defaults), *getattr(defaults, "attribute_map", {})}
    numbers = [name for name in names if name in attributes and is_number(getattr(defaults, name, None))]
    settings: dict[str, Any] = {name: SMALL[name] for name in numbers}
    if "vocab_size" in settings:
        settings |= small_ids(defaults, attributes)
    if isinstance(getattr(defaults, "depths", None), list | tuple):
        settings["depths"] = [1] * len(defaults.depths)
    for name, part in (getattr(defaults, "sub_configs", None) or {}).items():
        if isinstance(getattr(defaults, name, None), part):
            settings[name] = small_settings(part, level, special.get(name, {}))
    return {**settings, **special}


def is_number(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def small_ids(defaults: Any, attributes: set[str]) -> dict[str, int]:
    """Special tokens within the small vocabulary."""
    large = [name for name in IDS if (getattr(defaults, name, None) or 0) >= VOCABULARY]
    settings = dict.fromkeys(large, 2)
    padding = getattr(defaults, "pad_token_id", None)
    if "pad_token_id" in attributes:
        settings["pad_token_id"] = padding if isinstance(padding, int) and padding < VOCABULARY else 0
    if getattr(defaults, "is_encoder_decoder", False) and not hasattr(defaults, "decoder_start_token_id"):
        settings["decoder_start_token_id"] = 0
    return settings


def build(kind: str, level: int = 0) -> nn.Module:
    """A model of this type in evaluation mode; its weights depend on the type only."""
    import transformers
    from transformers import CONFIG_MAPPING

    _, name = architectures()[kind]
    config_class = CONFIG_MAPPING[kind]
    config = config_class(**small_settings(config_class, level, SPECIAL.get(kind, {})))
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases: 0 and 1 would hide that one was left out
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def inputs(model: nn.Module, side: str, seed: int = 0) -> dict[str, Any]:
    """Three texts of up to 19 tokens, two images, or two sounds."""
    generator = torch.Generator().manual_seed(seed)
    config, name = model.config, model.main_input_name
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if name == "pixel_values":
        size, channels = image_size(config), int(getattr(config, "num_channels", 3))
        return {"pixel_values": torch.randn(2, channels, *size, generator=generator)}
    if name in ("input_values", "input_features"):
        return sound(model, generator)
    batch, length = 3, 19
    vocabulary = int(getattr(text, "vocab_size", None) or VOCABULARY)
    ids = torch.randint(5, min(vocabulary, VOCABULARY), (batch, length), generator=generator)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1, 11:] = 0
    mask[2, 4:] = 0
    if side == "left":
        mask = mask.flip(1)
    end, padding = getattr(text, "eos_token_id", None), getattr(text, "pad_token_id", None)
    if isinstance(end, int):  # some heads look at the place of the one end of text
        ids[torch.arange(batch), (mask * torch.arange(length)).argmax(1)] = end
    if padding is not None:
        ids = ids.masked_fill(mask == 0, padding)
    return {"input_ids": ids, "attention_mask": mask}


def image_size(config: Any) -> tuple[int, int]:
    for part in (config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None)):
        size = getattr(part, "image_size", None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, list | tuple) and len(size) == 2:
            return int(size[0]), int(size[1])
    return 64, 64


def sound(model: nn.Module, generator: torch.Generator) -> dict[str, Any]:
    config = model.config
    if model.main_input_name == "input_features" and hasattr(config, "num_mel_bins"):
        frames = 2 * config.max_source_positions
        return {"input_features": torch.randn(2, config.num_mel_bins, frames, generator=generator)}
    if hasattr(config, "num_mel_bins"):  # a spectrogram as an image
        return {"input_values": torch.randn(2, config.max_length, config.num_mel_bins, generator=generator)}
    if model.main_input_name == "input_features":
        features = torch.randn(2, 40, config.feature_projection_input_dim, generator=generator)
        mask = torch.ones(2, 40, dtype=torch.long)
        mask[1, 25:] = 0
        return {"input_features": features, "attention_mask": mask}
    waves = torch.randn(2, 12000, generator=generator)
    mask = torch.ones(2, 12000, dtype=torch.long)
    mask[1, 7000:] = 0
    return {"input_values": waves.masked_fill(mask == 0, 0.0), "attention_mask": mask}

"""What quantizers of transformers leave on a model."""

from __future__ import annotations

from typing import Any

from torch import nn

QUANTIZER, CONFIG = "hf_quantizer", "quantization_config"  # of a model; of its config
QUANTIZED = ("is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit")
CONVERSIONS = "_weight_conversions"  # how the quantizer's tensors become those of its checkpoint
DECOMPRESSES = "ct_decompress_hook"  # compressed-tensors' on the whole model: expands every weight at a call


def had_quantizer(model: nn.Module) -> bool:
    """Whether a quantizer has loaded the model or a part of it. What it notes there stays, as False, where it
    has expanded the weights."""
    return any(QUANTIZED[0] in vars(module) for module in model.modules())


def forget_quantizer(model: Any) -> None:
    """Of a model that has no part of its quantizer any more: it saves ordinary values, and may be cast."""
    for module in model.modules():
        handle = module.__dict__.pop(DECOMPRESSES, None)
        if handle is not None:
            module._forward_pre_hooks.pop(handle.id, None)
        for name in (QUANTIZER, CONVERSIONS, *QUANTIZED):
            module.__dict__.pop(name, None)
        config = getattr(module, "config", None)
        if hasattr(config, CONFIG):
            delattr(config, CONFIG)

"""Linear layers that a checkpoint has quantized: the kernels compute them from the checkpoint's own numbers.

Each format is a file: how a loaded module of it is recognised, and how its numbers are read. No format's
package is imported: a module of it can only exist where its package has been.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from hfaccel.engine.weights.checkpoints import awq, compressed_tensors, gptq, torchao
from hfaccel.engine.weights.checkpoints.integers import Integers, Rows, Unreadable


@dataclass(frozen=True)
class Format:
    """A way in which checkpoints store quantized linear layers."""

    name: str
    recognises: Callable[[nn.Module], bool]
    read: Callable[[nn.Module], Integers | Rows]  # raises Unreadable
    # How to load a model that has layers that cannot be read, where its quantizer otherwise expands all
    # weights at the first call; "" where each layer computes by itself.
    otherwise: str = ""


FORMATS = (
    Format("GPTQ", gptq.recognises, gptq.read),
    Format("AWQ", awq.recognises, awq.read),
    Format(
        "compressed-tensors",
        compressed_tensors.recognises,
        compressed_tensors.read,
        "load it with quantization_config=transformers.CompressedTensorsConfig(dequantize=True)",
    ),
    Format("torchao", torchao.recognises, torchao.read),
)


def format_of(module: nn.Module) -> Format | None:
    """The format of a quantized linear layer; None for any other module."""
    return next((each for each in FORMATS if each.recognises(module)), None)


def is_quantized(model: nn.Module) -> bool:
    return any(format_of(module) is not None for module in model.modules())


__all__ = ["FORMATS", "Format", "Integers", "Rows", "Unreadable", "format_of", "is_quantized"]

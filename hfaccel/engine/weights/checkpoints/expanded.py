"""Quantized checkpoints that transformers expands to floats while it loads them: GGUF, MXFP4, and others with
`dequantize=True`. Their numbers are read off the values (engine.weights.grid)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import nn

from hfaccel.engine.weights.grid import forms_of_some
from hfaccel.engine.weights.grids import BITS
from hfaccel.engine.weights.linear import is_linear, weight_class
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.upstream.of_quantizers import had_quantizer

LOOKED_AT = 16  # weights: a file may leave a few as floats, or have a few in a form that is not known


def was_expanded(model: nn.Module) -> bool:
    """Whether a quantizer has loaded this model, and the values of its weights are still whole numbers with
    scales."""
    if not had_quantizer(model):
        return False
    return any(any(forms_of_some(each, BITS)) for each in islice(_matrices(model), LOOKED_AT))


def _matrices(model: nn.Module) -> Iterator[torch.Tensor]:
    """(out_features, in_features) each: of linear layers, and of the first experts of layers of experts."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is None or not weight.is_floating_point() or weight.dim() not in (2, 3):
                continue
            if weight.dim() == 3:
                yield from (first := _values(weight)[0], first.t())
            elif name == "weight" and is_linear(module):
                yield weight_class(module).turn(_values(weight))


def _values(weight: torch.Tensor) -> torch.Tensor:
    return weight.unpack() if isinstance(weight, PackedWeight) else weight.detach()

"""Packed linear layers under torch.autocast in bfloat16, whose results are bfloat16 as stock's are.

A few rows are multiplied by the packed weight itself, in its own numbers: reading the weight is what takes
time. For more rows torch's own product of bfloat16 is the faster one; stock rounds the weight for it at each
call, and here the rounded weight is kept for as long as the weight does not change.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hfaccel.engine.kernels import Kind
from hfaccel.engine.packed import PackedWeight

FEW = 32  # rows; measured for 768 x 3072 and its transpose
HALF = "_hfaccel_half"  # attribute of a layer: (its packed bytes, their version, the weight in bfloat16)

Product = Callable[[torch.Tensor, PackedWeight, torch.Tensor | None], torch.Tensor]


def is_bfloat16() -> bool:
    return torch.get_autocast_dtype("cpu") is torch.bfloat16


def under_autocast(module: Any, input: torch.Tensor, product: Product) -> torch.Tensor:
    """What the layer gives; `product` multiplies by a packed weight."""
    weight, bias = module.weight, module.bias
    rows = input.numel() // input.shape[-1]
    if rows <= FEW or weight.kind is Kind.INT8 or weight.memory.is_inference():
        return product(input, weight, bias).bfloat16()
    added = None if bias is None else bias.detach().bfloat16()
    return nn.functional.linear(input.bfloat16(), _half(module, weight), added)


def forget_half(module: nn.Module) -> None:
    module.__dict__.pop(HALF, None)


def _half(module: nn.Module, weight: PackedWeight) -> torch.Tensor:
    """(out_features, in_features) in bfloat16."""
    memory, version, half = module.__dict__.get(HALF, (_nothing, -1, None))
    if half is None or memory() is not weight.memory or version != weight.memory._version:
        half = weight.turn(weight.unpack()).to(torch.bfloat16).contiguous()
        module.__dict__[HALF] = weakref.ref(weight.memory), weight.memory._version, half
    result: torch.Tensor = half
    return result


def _nothing() -> None:
    return None

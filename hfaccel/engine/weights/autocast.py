"""Packed linear layers under torch.autocast in bfloat16. Like torch's own, they return bfloat16.

A float32 weight is rounded first. torch rounds the weight at each call; here the rounded weight is kept until
the weight changes. With few rows the kernels multiply. With more rows torch's own product in bfloat16 is
faster; it needs the ordinary layout. A CPU without an instruction for bfloat16 multiplies float32, which is
faster there and more exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from hfaccel.engine.kernels import Kind, multiplies
from hfaccel.engine.weights.packed import PackedWeight

FEW = 128  # rows; measured for 768 x 3072 and its transpose

T = TypeVar("T")
Product = Callable[[torch.Tensor, PackedWeight, torch.Tensor | None], torch.Tensor]

# Packed bytes -> (their version, the weight in bfloat16). An entry is freed together with its bytes.
_packed, _dense = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()


def is_bfloat16() -> bool:
    return torch.get_autocast_dtype("cpu") is torch.bfloat16


def under_autocast(module: Any, input: torch.Tensor, product: Product) -> torch.Tensor:
    """The layer's result; `product` multiplies by a packed weight."""
    weight, bias = module.weight, module.bias
    rows = input.numel() // input.shape[-1]
    exact = weight.kind in (Kind.FLOAT32, Kind.BFLOAT16)
    if not exact or weight.memory.is_inference() or not multiplies(Kind.BFLOAT16):
        return product(input, weight, bias).bfloat16()
    if rows <= FEW:
        return product(input, rounded(weight), bias).bfloat16()
    added = None if bias is None else bias.detach().bfloat16()
    return nn.functional.linear(input.bfloat16(), _laid_out(weight), added)


def is_rounded(weight: PackedWeight) -> bool:
    """Whether the kernels multiply other numbers under autocast than they do otherwise."""
    return weight.kind is Kind.FLOAT32 and multiplies(Kind.BFLOAT16)


def rounded(weight: PackedWeight) -> PackedWeight:
    """The weight in the kind that the kernels multiply under autocast; the weight itself if it is of this
    kind."""
    if not is_rounded(weight):
        return weight
    return _kept(_packed, weight, lambda: weight.pack(weight.unpack(), None, Kind.BFLOAT16))


def forget_laid_out(weight: PackedWeight) -> None:
    """Drop the dense copy of a weight that only the kernels will multiply from now on."""
    _dense.pop(weight.memory, None)


def _laid_out(weight: PackedWeight) -> torch.Tensor:
    """(out_features, in_features) in bfloat16."""
    result: torch.Tensor = _kept(_dense, weight, lambda: weight.turn(weight.unpack()).bfloat16().contiguous())
    return result


def _kept(known: WeakTensorKeyDictionary, weight: PackedWeight, make: Callable[[], T]) -> T:
    half: T
    version, half = known.get(weight.memory, (-1, None))
    if version != weight.memory._version:
        version = weight.memory._version  # read before the values, which another thread may change meanwhile
        with torch.inference_mode(False):
            half = make()
        known[weight.memory] = version, half
    return half

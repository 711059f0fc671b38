"""Keys and values in 8 bits.

Each head's key or value of a token is a row of signed bytes, and behind them the float with which they are
multiplied.
"""

from __future__ import annotations

import torch

FACTOR = 4  # bytes of the float behind a row


def row_size(size: int, dtype: torch.dtype) -> int:
    """Numbers of a row with a head of this size, in a cache of this type."""
    return size + FACTOR if dtype is torch.int8 else size


def narrowed(numbers: torch.Tensor) -> torch.Tensor:
    """(..., size) floats as (..., size + FACTOR) int8."""
    numbers = numbers.float()
    factor = numbers.abs().amax(-1, keepdim=True) / 127
    rounded = (numbers / factor.where(factor > 0, 1.0)).round().to(torch.int8)
    return torch.cat([rounded, factor.view(torch.int8)], -1)


def widened(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The floats that such rows stand for."""
    factor = rows[..., -FACTOR:].contiguous().view(torch.float32)
    return (rows[..., :-FACTOR] * factor).to(dtype)

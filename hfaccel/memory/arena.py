"""Tensors on huge pages. An arena is one region of memory from which tensors are carved one by one."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Literal

import torch

from hfaccel import native
from hfaccel.errors import UsageError

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
Pages = Literal["auto", "thp", "default"]


class Arena:
    """`size` bytes of memory that tensors are taken from, side by side and in order, until it is full.

    A tensor keeps the whole arena alive; the memory is given back when the last tensor goes. Where huge
    pages cannot be had the memory comes from torch's allocator instead, and `problem` says why.
    """

    def __init__(self, size: int, *, huge: bool = True) -> None:
        if size < 0:
            raise UsageError(f"`size >= 0` bytes must hold for an arena, but got {size}")
        self.used = 0
        self.problem = "" if huge else "huge pages are off"
        region = self._reserve(size) if huge and size > 0 else None
        if region is not None:
            self._bytes = torch.frombuffer(region, dtype=torch.uint8)
        else:
            self._bytes = torch.empty(size, dtype=torch.uint8)

    def _reserve(self, size: int) -> native.Region | None:
        if native.arena is None:
            self.problem = native.MISSING
            return None
        try:
            region = native.arena.Region(size)
        except OSError as error:
            self.problem = str(error.args[-1])
            return None
        if region.advise_error:
            self.problem = f"madvise(MADV_HUGEPAGE): {os.strerror(region.advise_error)}"
        return region

    def take(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """An uninitialised, contiguous tensor, aligned to 64 bytes. Raises UsageError when full."""
        start = padded(self.used)
        end = start + math.prod(shape) * dtype.itemsize
        if end > self._bytes.numel():
            raise UsageError(
                f"an arena holds {self._bytes.numel()} bytes, but a tensor up to byte {end} was taken"
            )
        self.used = end
        return self._bytes[start:end].view(dtype).view(tuple(shape))


def padded(nbytes: int) -> int:
    """`nbytes` rounded up to ALIGNMENT: what a tensor of that size takes up in an arena."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def empty(
    shape: int | Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    pages: Pages = "auto",
) -> torch.Tensor:
    """An uninitialised CPU tensor of `shape`, on huge pages where the system gives them.

    `pages`: "thp" asks for transparent huge pages; "auto" does so for tensors of 2 MiB and more, where
    they can pay; "default" leaves it to torch's allocator. Raises UsageError for another value.
    """
    if pages not in ("auto", "thp", "default"):
        raise UsageError(f"pages must be auto, thp or default, but got {pages!r}")
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(size < 0 for size in sizes):
        raise UsageError(f"every size of a shape must be 0 or more, but got {sizes}")
    nbytes = math.prod(sizes) * dtype.itemsize
    huge = pages == "thp" or (pages == "auto" and nbytes >= 2 << 20)
    return Arena(nbytes, huge=huge).take(sizes, dtype) if huge else torch.empty(sizes, dtype=dtype)

"""The share of tensors' bytes that lies on huge pages, as the kernel reports."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import torch

from hfaccel import native
from hfaccel.errors import HfaccelError, ModelError

# Bytes. Ranges closer than this are read as one, because tensors in an arena lie a few bytes apart.
GAP = 4096
SMAPS = "/proc/self/smaps"


def coverage(tensors: torch.nn.Module | Iterable[torch.Tensor]) -> float:
    """The fraction (0 to 1) of the bytes of a model's parameters and buffers, or of the given tensors, that
    lies on 2 MiB pages. Memory that was never touched counts as not covered.

    Raises HfaccelError where /proc/self/smaps cannot be read, ModelError for anything but a model or tensors.
    """
    problem = coverage_problem()
    if problem:
        raise HfaccelError(f"coverage cannot be read: {problem}")
    ranges = merge(_ranges(tensors))
    huge = 0.0
    for start, end in ranges:
        _, anonymous, file = _smaps(start, end - start)
        huge += min(anonymous + file, end - start)
    total = sum(end - start for start, end in ranges)
    return huge / total if total else 0.0


def coverage_problem() -> str:
    """Why coverage cannot be read here; "" if it can."""
    if native.arena is None:
        return native.MISSING
    return "" if os.access(SMAPS, os.R_OK) else f"{SMAPS} cannot be read"


def _smaps(start: int, size: int) -> tuple[int, int, int]:
    assert native.arena is not None
    try:
        return native.arena.smaps(start, size)
    except OSError as error:
        raise HfaccelError(f"coverage cannot be read: {SMAPS}: {error.strerror or error}") from error


def _ranges(tensors: torch.nn.Module | Iterable[torch.Tensor]) -> Iterator[tuple[int, int]]:
    if isinstance(tensors, torch.nn.Module):
        tensors = [*tensors.parameters(), *tensors.buffers()]
    elif isinstance(tensors, torch.Tensor):
        tensors = [tensors]
    elif not isinstance(tensors, Iterable):
        raise ModelError(f"a model or tensors are expected, but got {tensors!r}")
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise ModelError(f"a model or tensors are expected, but one of them is {tensor!r}")
        # A packed weight has no storage of its own; it names the tensor that holds its bytes.
        held = getattr(tensor, "memory", tensor)
        if held.device.type == "cpu" and held.layout is torch.strided and held.numel():
            yield held.data_ptr(), held.data_ptr() + extent(held)


def extent(tensor: torch.Tensor) -> int:
    """Bytes from the beginning of a tensor's first element to the end of its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(last + 1) * tensor.element_size()


def merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges in ascending order; ranges that overlap, or with a gap below GAP, become one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start - merged[-1][1] < GAP:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged

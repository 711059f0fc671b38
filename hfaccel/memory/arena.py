"""Tensors on huge pages. An arena is one region of memory from which tensors are carved one by one."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Literal

import torch

from hfaccel import native
from hfaccel.errors import UsageError
from hfaccel.host.tree import Tree

HUGE_PAGE = 2 << 20  # bytes
ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
COLOUR = 7 * ALIGNMENT  # shifts a tensor whose page offset repeats: equal offsets share cache sets
Pages = Literal["auto", "thp", "hugetlb", "hugetlb-1g", "default"]
PAGES = ("auto", "thp", "hugetlb", "hugetlb-1g", "default")


class Arena:
    """`size` bytes of memory that tensors are taken from, side by side and in order, until it is full.

    A tensor keeps the whole arena alive; the memory is given back when the last tensor goes. `pages`:
    "thp" asks for transparent huge pages, "hugetlb" for explicit ones of 2 MiB out of the system's pool,
    "hugetlb-1g" of 1 GiB, each with the one before it as the fallback; "default" asks for nothing. `node`:
    the NUMA node that pages come from where it has room. `locked` keeps them in memory (RLIMIT_MEMLOCK).
    What the system refuses is in `problem`; `pages` says what it is made of. Without the native part the
    memory is torch's.
    """

    def __init__(
        self, size: int, *, pages: Pages = "thp", node: int | None = None, locked: bool = False
    ) -> None:
        if size < 0:
            raise UsageError(f"`size >= 0` bytes must hold for an arena, but got {size}")
        self.used = 0
        self._colour = -1  # where in its page the last tensor begins
        self.problem = "" if pages != "default" else "huge pages are off"
        self.pages = "default"
        wants_nothing = pages == "default" and node is None and not locked
        region = None if wants_nothing or size == 0 else self._reserve(size, pages, node, locked)
        self._bytes = (
            torch.empty(size, dtype=torch.uint8)
            if region is None
            else torch.frombuffer(region, dtype=torch.uint8)
        )

    def _reserve(self, size: int, pages: str, node: int | None, locked: bool) -> native.Region | None:
        if native.arena is None:
            self.problem = native.MISSING
            return None
        try:
            region = native.arena.Region(size, pages, -1 if node is None else node, locked)
        except OSError as error:
            self.problem = str(error.args[-1])
            return None
        self.pages = region.pages
        refused = [f"{call}: {os.strerror(number)}" for call, number in region.refused]
        self.problem = "; ".join(filter(None, [self.problem, *refused]))
        return region

    def take(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, *, coloured: bool = False
    ) -> torch.Tensor:
        """An uninitialised, contiguous tensor, aligned to 64 bytes. Raises UsageError when full.

        `coloured`: not at the same place within a page as the one before it.
        """
        start = padded(self.used)
        if coloured and start % 4096 == self._colour:
            start += COLOUR
        self._colour = start % 4096
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
    numa_node: int | None = None,
) -> torch.Tensor:
    """An uninitialised CPU tensor of `shape`, on huge pages where the system gives them.

    `pages`: "thp" asks for transparent huge pages, "hugetlb" and "hugetlb-1g" for explicit ones out of the
    system's pool, with THP as the fallback; "auto" asks for THP from 2 MiB on, where they can pay;
    "default" leaves it to torch's allocator. `numa_node`: where the memory comes from, if it has room.
    Raises UsageError for another value or a node that does not exist.
    """
    if pages not in PAGES:
        raise UsageError(f"pages must be one of {', '.join(PAGES)}, but got {pages!r}")
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(size < 0 for size in sizes):
        raise UsageError(f"every size of a shape must be 0 or more, but got {sizes}")
    check_node(numa_node)
    nbytes = math.prod(sizes) * dtype.itemsize
    if pages == "auto":
        pages = "thp" if nbytes >= HUGE_PAGE else "default"
    if pages == "default" and numa_node is None:
        return torch.empty(sizes, dtype=dtype)
    return Arena(nbytes, pages=pages, node=numa_node).take(sizes, dtype)


def check_node(node: int | None) -> None:
    """Raise UsageError for a NUMA node that this machine does not have."""
    if node is None:
        return
    online = Tree().numbers("/sys/devices/system/node/online") or (0,)
    if node not in online:
        raise UsageError(f"a NUMA node must be one of {list(online)}, but got {node!r}")

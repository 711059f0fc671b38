"""Tensors on huge pages. An arena is one region of memory from which tensors are taken one by one."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from hfaccel import native
from hfaccel.errors import UsageError, whole_number
from hfaccel.host import Tree, read_memory, thp_problem

HUGE_PAGE = 2 << 20  # bytes
ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
COLOUR = 7 * ALIGNMENT  # shifts a tensor with the page offset of the last one: they would share cache sets
LIMIT = 1 << 63  # of bytes and of the sizes of a shape: torch counts in signed 64-bit integers
Pages = Literal["auto", "thp", "hugetlb", "hugetlb-1g", "default"]
PAGES: tuple[Pages, ...] = get_args(Pages)


class Arena:
    """`size` bytes of memory, from which tensors are taken side by side until the arena is full.

    A tensor keeps the whole arena alive; the memory is freed with the last tensor. `pages`: "thp" asks for
    transparent huge pages, "hugetlb" for explicit huge pages of 2 MiB from the system's pool, "hugetlb-1g"
    of 1 GiB, each with the one before as the fallback; "default" asks for nothing. `node`: the NUMA node of
    the pages, as far as it has room. `locked` keeps the pages in memory (RLIMIT_MEMLOCK). Afterwards `pages`
    says what kind the pages are, and `problem` what the system refused. Without the native part the memory
    is torch's. Threads may take from one arena at the same time.

    Raises UsageError for a value that breaks a rule, torch's RuntimeError where memory is exhausted.
    """

    def __init__(
        self, size: int, *, pages: Pages = "thp", node: int | None = None, locked: bool = False
    ) -> None:
        size = check_bytes(size, "an arena")
        if pages not in PAGES or pages == "auto":
            raise UsageError(f"pages must be one of {', '.join(PAGES[1:])}, but got {pages!r}")
        check_node(node)
        self.used = 0
        self._taking = threading.Lock()
        self._colour = -1  # where in its page the last tensor begins
        self.problem = "" if pages != "default" else "huge pages are off"
        self.pages = "default"
        wants_nothing = pages == "default" and node is None and not locked
        region = None if wants_nothing or size == 0 else self._reserve(size, pages, node, locked)
        self._buffer: object = torch.empty(size, dtype=torch.uint8).numpy() if region is None else region
        self._size = size if region is None else len(region)  # of whole pages

    @property
    def room(self) -> int:
        """The largest tensor, in bytes, that can still be taken."""
        return max(0, self._size - padded(self.used))

    def _reserve(self, size: int, pages: str, node: int | None, locked: bool) -> native.Region | None:
        if native.arena is None:
            self.problem = native.MISSING
            return None
        try:
            region = native.arena.Region(size, pages, -1 if node is None else node, locked)
        except OSError as error:
            self.problem = str(error.args[-1])
            return None
        refused = [f"{call}: {os.strerror(number)}" for call, number in region.refused]
        # The kernel accepts the advice in every mode; thp_problem says whether it gives huge pages.
        missing = thp_problem(read_memory(Tree())) if region.pages == "thp" else ""
        self.pages = "default" if missing else region.pages
        self.problem = "; ".join(filter(None, [self.problem, *refused, missing]))
        return region

    def take(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, *, coloured: bool = False
    ) -> torch.Tensor:
        """An uninitialised, contiguous tensor, aligned to 64 bytes.

        `coloured`: at another offset within its page than the tensor before. If the arena is full, or the
        shape or dtype breaks a rule, raises UsageError and takes nothing.
        """
        sizes = check_shape(shape)
        nbytes = check_bytes(math.prod(sizes) * item_size(dtype), "a tensor")
        with self._taking:
            start = padded(self.used)
            if coloured and start % 4096 == self._colour:
                start += COLOUR
            end = start + nbytes
            if end > self._size:
                raise UsageError(
                    f"an arena holds {self._size} bytes, but a tensor up to byte {end} was requested"
                )
            self._colour = start % 4096
            self.used = end
        if nbytes == 0:
            return torch.empty(sizes, dtype=dtype)
        # Each tensor gets its own storage: torch.save writes whole storages, each in one dtype only.
        taken = torch.frombuffer(self._buffer, dtype=torch.uint8, offset=start, count=nbytes)
        return taken.view(dtype).view(sizes)


def padded(nbytes: int) -> int:
    """`nbytes` rounded up to ALIGNMENT: what a tensor of that size occupies in an arena."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def empty(
    shape: int | Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    pages: Pages = "auto",
    numa_node: int | None = None,
) -> torch.Tensor:
    """An uninitialised CPU tensor of `shape`, on huge pages where the system gives them.

    `pages`: "thp" asks for transparent huge pages (THP), "hugetlb" and "hugetlb-1g" for explicit huge pages
    from the system's pool, with THP as the fallback; "auto" asks for THP where the tensor has 2 MiB or more;
    "default" leaves the memory to torch's allocator. `numa_node`: the node of the memory, as far as it has
    room. Raises UsageError for a value that breaks a rule, torch's RuntimeError where memory is exhausted.
    """
    if pages not in PAGES:
        raise UsageError(f"pages must be one of {', '.join(PAGES)}, but got {pages!r}")
    sizes = check_shape(shape)
    check_node(numa_node)
    nbytes = check_bytes(math.prod(sizes) * item_size(dtype), "a tensor")
    if pages == "auto":
        pages = "thp" if nbytes >= HUGE_PAGE else "default"
    if pages == "default" and numa_node is None:
        return torch.empty(sizes, dtype=dtype)
    return Arena(nbytes, pages=pages, node=numa_node).take(sizes, dtype)


# Rules for arguments


def check_node(node: int | None) -> None:
    """Raise UsageError for a NUMA node that this machine does not have."""
    if node is None:
        return
    online = Tree().numbers("/sys/devices/system/node/online") or (0,)
    if type(node) is not int or node not in online:  # True and 0.0 equal nodes
        raise UsageError(f"a NUMA node must be one of {list(online)}, but got {node!r}")


def check_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    """The sizes of a shape. Raises UsageError unless they are integers, NumPy's included; bools are not."""
    given = shape if isinstance(shape, Sequence) else (shape,)
    sizes = tuple(whole_number(size) for size in given)
    if isinstance(shape, str | bytes) or any(size is None for size in sizes):
        raise UsageError(f"a shape must be an integer or a sequence of integers, but got {shape!r}")
    if any(size is None or not 0 <= size < LIMIT for size in sizes):
        raise UsageError(f"every size of a shape must be below 2**63 and 0 or more, but got {sizes}")
    return tuple(size for size in sizes if size is not None)


def check_bytes(size: int, what: str) -> int:
    number = whole_number(size)
    if number is None or not 0 <= number < LIMIT:
        raise UsageError(f"`0 <= size < 2**63` bytes must hold for {what}, but got {size!r}")
    return number


def item_size(dtype: torch.dtype) -> int:
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"dtype must be a torch.dtype, such as torch.float32, but got {dtype!r}")
    return dtype.itemsize

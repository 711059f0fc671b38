"""Gives memory that allocators keep for the next forward back to the system, on request."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

from hfaccel import native
from hfaccel.host import Tree

# Keys: beginnings of the file names of libraries that serve malloc. 4096 is MALLCTL_ARENAS_ALL.
ALLOCATORS: dict[str, Callable[[ctypes.CDLL], object]] = {
    "libmimalloc": lambda library: library.mi_collect(True),
    "libjemalloc": lambda library: library.mallctl(b"arena.4096.purge", None, None, None, 0),
    "libtcmalloc": lambda library: library.MallocExtension_ReleaseFreeMemory(),
}


def release() -> int:
    """Give freed memory that the allocator keeps back to the system. Returns the number of bytes.

    The number is 0 without /proc or without the native part. Use this in a process that becomes idle or has
    finished its largest batch: the next forward has to fault its activations in again. Works with glibc,
    mimalloc, jemalloc and tcmalloc.
    """
    gc.collect()
    before = _resident()
    if native.arena is not None:
        owner = native.arena.malloc_owner().rpartition("/")[2]
        give_back = next((call for name, call in ALLOCATORS.items() if owner.startswith(name)), None)
        if give_back is None:
            native.arena.trim_heap()
        else:
            give_back(ctypes.CDLL(None))
    return max(0, before - _resident())


def _resident() -> int:
    """Bytes of this process that are resident in memory."""
    return (Tree().number_after("/proc/self/smaps_rollup", "Rss:") or 0) * 1024

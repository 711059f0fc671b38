"""Memory that allocators keep for the next forward, given back to the system on request."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

from hfaccel import native
from hfaccel.host import Tree


def release() -> int:
    """Give freed memory that the allocator keeps back to the system; returns how many bytes went.

    That is 0 where there is no /proc to tell. The next forward faults its activations in again. For when a
    process goes idle, or has done its largest batch. Serves glibc, mimalloc, jemalloc and tcmalloc.
    """
    gc.collect()
    before = _resident()
    owner = native.arena.malloc_owner().rpartition("/")[2] if native.arena is not None else ""
    give_back = next((call for name, call in _ALLOCATORS.items() if owner.startswith(name)), _trim_glibc)
    give_back()
    return max(0, before - _resident())


def _trim_glibc() -> None:
    if native.arena is not None:
        native.arena.trim_heap()


def _collect_mimalloc() -> None:
    ctypes.CDLL(None).mi_collect(True)


def _purge_jemalloc() -> None:
    all_arenas = 4096  # MALLCTL_ARENAS_ALL
    ctypes.CDLL(None).mallctl(f"arena.{all_arenas}.purge".encode(), None, None, None, 0)


def _release_tcmalloc() -> None:
    ctypes.CDLL(None).MallocExtension_ReleaseFreeMemory()


_ALLOCATORS: dict[str, Callable[[], None]] = {  # by the beginning of the library's file name
    "libmimalloc": _collect_mimalloc,
    "libjemalloc": _purge_jemalloc,
    "libtcmalloc": _release_tcmalloc,
}


def _resident() -> int:
    """Bytes of this process that are in memory."""
    for line in Tree().lines("/proc/self/smaps_rollup"):
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    return 0

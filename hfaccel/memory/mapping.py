"""Mappings of files and of anonymous files, aligned so that huge pages fit, as tensors."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from typing import Any

import torch

from hfaccel import native
from hfaccel.memory.arena import HUGE_PAGE

MAP_FIXED = 0x10  # linux/mman.h; Python's mmap module does not have it


def map_bytes(descriptor: int, size: int, *, shared: bool = False) -> torch.Tensor:
    """The first `size` bytes of a file as a uint8 tensor, aligned to and advised for huge pages.

    Changes stay in this process, page by page, unless `shared`. The mapping goes with the last tensor
    over it. Raises OSError for what the system refuses.
    """
    # Python cannot map at a given address, which must be a multiple of a huge page. So address space is
    # reserved by a mapping of nothing, and the file is mapped over it; both go when the reservation goes.
    reserved = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE)
    address = torch.frombuffer(reserved, dtype=torch.uint8).data_ptr()
    start = -address % HUGE_PAGE
    flags = MAP_FIXED | (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE)
    ctypes.set_errno(0)
    found = _mmap()(address + start, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0)
    if found != address + start:
        number = ctypes.get_errno()
        raise OSError(number, f"mmap of {size} bytes of a file failed: {os.strerror(number)}")
    if native.arena is not None:
        native.arena.make_huge(address + start, size, False)  # advice: refused, pages are small
    return torch.frombuffer(reserved, dtype=torch.uint8, offset=start, count=size)


@functools.cache
def _mmap() -> Any:
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    return function

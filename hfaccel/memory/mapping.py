"""Files, anonymous files included, mapped as tensors and aligned to huge pages."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Callable

import torch

from hfaccel import native
from hfaccel.memory.arena import HUGE_PAGE

MAP_FIXED = 0x10  # linux/mman.h; Python's mmap module does not have it


def map_bytes(descriptor: int, size: int, *, shared: bool = False) -> torch.Tensor:
    """The first `size` bytes of a file as a uint8 tensor, aligned to and advised for huge pages.

    Changes stay in this process, page by page, unless `shared`. The mapping is removed with the last tensor
    over it. Raises OSError if the system refuses the mapping.
    """
    # The address must be a multiple of a huge page, but Python's mmap takes no address. So an anonymous
    # mapping reserves address space, and the file is mapped over it; removing the reservation removes both.
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
        native.arena.make_huge(address + start, size, False)  # advice only: the kernel may refuse
    return torch.frombuffer(reserved, dtype=torch.uint8, offset=start, count=size)


@functools.cache
def _mmap() -> Callable[..., int | None]:
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    return function

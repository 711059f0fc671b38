"""Huge-page memory for tensors, and what became of it: empty, pack_, share, coverage, release."""

from hfaccel.memory.arena import Arena, Pages, empty, padded
from hfaccel.memory.coverage import coverage
from hfaccel.memory.pack import Packed, pack_
from hfaccel.memory.release import release
from hfaccel.memory.sharing import Shared, share, shared

__all__ = [
    "Arena",
    "Packed",
    "Pages",
    "Shared",
    "coverage",
    "empty",
    "pack_",
    "padded",
    "release",
    "share",
    "shared",
]

"""Huge-page memory for tensors: `hfaccel.memory.empty` and `hfaccel.memory.coverage`."""

from hfaccel.memory.arena import Arena, empty, padded
from hfaccel.memory.coverage import coverage

__all__ = ["Arena", "coverage", "empty", "padded"]

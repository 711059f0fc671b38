"""Nested lists that the garbage collector does not visit."""

from __future__ import annotations

import ctypes

_untrack = ctypes.pythonapi.PyObject_GC_UnTrack
_untrack.argtypes = [ctypes.py_object]
_untrack.restype = None


def untracked(nested: list[object]) -> list[object]:
    """The same nested lists; the collector no longer visits the innermost ones, which hold only numbers.

    Otherwise the collector would look at every number again and again while further lists are made, which is
    a third of the time of converting millions of floats to lists. Lists of numbers cannot be part of a cycle,
    and reference counting still frees them.
    """
    for inner in nested:
        if isinstance(inner, list) and inner and isinstance(inner[0], list):
            untracked(inner)
        elif isinstance(inner, list):
            _untrack(inner)
    return nested

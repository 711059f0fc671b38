"""Nested lists that the garbage collector passes by."""

from __future__ import annotations

import ctypes

_untrack = ctypes.pythonapi.PyObject_GC_UnTrack
_untrack.argtypes = [ctypes.py_object]
_untrack.restype = None


def untracked(nested: list[object]) -> list[object]:
    """The same nested lists; the collector no longer visits the innermost ones, which hold only numbers.

    It would look at every number again and again while further lists are made: a third of the time that
    millions of floats take to become lists. Lists of numbers are in no cycle, so nothing is lost; they
    are freed by their reference counts as ever.
    """
    for inner in nested:
        if isinstance(inner, list) and inner and isinstance(inner[0], list):
            untracked(inner)
        elif isinstance(inner, list):
            _untrack(inner)
    return nested

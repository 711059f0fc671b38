"""Calls with few, some and many rows: a layer may be faster with few rows and slower with many."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Regime(NamedTuple):
    """A range of numbers of rows (tokens of the whole batch), and the batch that is measured for it."""

    name: str
    batch: int
    length: int
    up_to: float  # rows


REGIMES = (Regime("few", 1, 16, 48), Regime("some", 1, 128, 256), Regime("many", 4, 128, math.inf))


def regime_of(rows: int) -> Regime:
    return next(regime for regime in REGIMES if rows <= regime.up_to)


_thread = threading.local()


def only_kernels() -> bool:
    """Whether this thread is in a call that a layer's own forward cannot compute, however fast it is."""
    return getattr(_thread, "depth", 0) > 0


@contextmanager
def kernels_needed() -> Iterator[None]:
    _thread.depth = getattr(_thread, "depth", 0) + 1
    try:
        yield
    finally:
        _thread.depth -= 1

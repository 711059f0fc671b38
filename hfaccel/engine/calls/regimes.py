"""Calls with few, some and many rows: a layer may be faster with few rows and slower with many."""

from __future__ import annotations

import math
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

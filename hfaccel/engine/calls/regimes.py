"""Calls with few, some and many rows: what is faster with one number of rows may be slower with another."""

from __future__ import annotations

import math
from typing import NamedTuple


class Regime(NamedTuple):
    """Calls with as many rows (tokens of the whole batch) as this."""

    name: str
    batch: int  # with which it is measured
    length: int
    up_to: float  # rows


REGIMES = (Regime("few", 1, 16, 48), Regime("some", 1, 128, 256), Regime("many", 4, 128, math.inf))


def regime_of(rows: int) -> Regime:
    return next(regime for regime in REGIMES if rows <= regime.up_to)

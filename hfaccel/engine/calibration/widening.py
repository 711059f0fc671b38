"""Whether int8 or bfloat16 is faster on a CPU without instructions for them, where weights are widened as
they are read.

Fewer bytes come from memory, but each weight costs instructions. Which effect wins depends on the CPU: with
AVX2, int8 is twice as fast as float32 on one CPU and no faster on another. So one linear layer is measured in
each process.
"""

from __future__ import annotations

import math
from functools import cache

import torch

from hfaccel.engine.calibration.speedups import time_pairs
from hfaccel.engine.calls.regimes import REGIMES, Regime
from hfaccel.engine.kernels import Kind, multiplies, set_in_use
from hfaccel.engine.weights.linear import linear
from hfaccel.engine.weights.packed import PackedWeight

SHAPE = (3072, 768)  # of a linear layer in the feed-forward of a base-sized encoder
WORTH = 1.05  # times as fast as float32, on average over the regimes
LEAST = 0.9  # times as fast as float32, in each regime


def widening_problem(kind: Kind) -> str:
    """Why float32 is multiplied although `kind` is asked for; "" if `kind` is multiplied."""
    if multiplies(kind):
        return ""
    speedups = widening_speedups(kind, torch.get_num_threads())
    if min(speedups) >= LEAST and _mean(speedups) >= WORTH:
        return ""
    return (
        f"the CPU multiplies float32 faster: {set_in_use()} has no instruction for {kind.label}, which is "
        f"{_told(speedups)} as fast here"
    )


def widening_gain(kind: Kind) -> str:
    """How much faster than float32 this kind is, if weights are widened; "" if they are not."""
    if multiplies(kind):
        return ""
    return f"{_told(widening_speedups(kind, torch.get_num_threads()))} as fast as float32, as measured here"


@cache
def widening_speedups(kind: Kind, threads: int) -> tuple[float, ...]:
    """How many times as fast as float32, with few and with some rows, at this number of threads."""
    dense = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) / 32
    wide, narrow = (PackedWeight.pack(dense, None, each) for each in (Kind.FLOAT32, kind))
    return tuple(_gain(wide, narrow, regime) for regime in REGIMES[:2])


def _gain(wide: PackedWeight, narrow: PackedWeight, regime: Regime) -> float:
    rows = torch.full((regime.batch * regime.length, SHAPE[1]), 0.5)
    return time_pairs(lambda: linear(rows, wide, None), lambda: linear(rows, narrow, None)).gain


def _mean(speedups: tuple[float, ...]) -> float:
    return math.prod(speedups) ** (1 / len(speedups))


def _told(speedups: tuple[float, ...]) -> str:
    return " and ".join(
        f"{gain:.2f} times (with {regime.name} rows)" for gain, regime in zip(speedups, REGIMES, strict=False)
    )

"""What samples say: percentiles, the end of the warm-up, and whether a ratio is more than noise. Pure.

A ratio is claimed if an interval excludes 1. The interval is the hull of two, so that a claim needs both:

- Student's t interval at 99 % of the logarithms. Outliers make it wider, so that it claims too little where
  tails are heavy, never too much; but samples that drift together make it too narrow.
- The interval of order statistics for the median, which holds for every distribution. From 5 pairs alone it
  can be no better than 93.75 % (all on one side), which by itself would claim too much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_PAIRS = 5  # with fewer, no ratio is claimed
LEAST_EFFECT = 0.01  # a ratio nearer to 1 is not claimed: sides differ by as much for reasons of their places
LOOKS = 3  # as many times the pairs, at most, while a ratio is not settled
LEVEL = 0.05  # of the order statistics
# Student's t, two-sided at 99 %, for 1, 2, ... 30 degrees of freedom; the normal's 2.576 is never reached.
T99 = (
    *(63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169),
    *(3.106, 3.055, 3.012, 2.977, 2.947, 2.921, 2.898, 2.878, 2.861, 2.845),
    *(2.831, 2.819, 2.807, 2.797, 2.787, 2.779, 2.771, 2.763, 2.756, 2.750),
)


def percentile(samples: Sequence[float], share: float) -> float | None:
    """None where the samples are too few to have so many beyond the percentile."""
    few = len(samples) * (1 - share) < 1 - 1e-9
    return None if few else float(np.quantile(samples, share))


def spread(samples: Sequence[float]) -> float | None:
    """How far the slowest tenth lies above the median."""
    tenth, median = percentile(samples, 0.9), percentile(samples, 0.5)
    return None if tenth is None or not median else tenth / median - 1


def is_warm(times: Sequence[float], window: int = 3, tolerance: float = 0.05) -> bool:
    """Whether the last calls were no faster than those before them."""
    if len(times) < 2 * window:
        return False
    last, before = np.median(times[-window:]), np.median(times[-2 * window : -window])
    return bool(last >= before * (1 - tolerance))


@dataclass(frozen=True)
class Ratio:
    """How many times faster one side was: the median over the pairs, and an interval for it."""

    median: float
    low: float
    high: float
    pairs: int
    disturbed: bool = False  # by other programs: nothing is claimed

    @property
    def significant(self) -> bool:
        """Whether it is claimed that the sides differ."""
        away = self.low > 1 + LEAST_EFFECT or self.high < 1 / (1 + LEAST_EFFECT)
        return self.pairs >= LEAST_PAIRS and away and not self.disturbed

    @property
    def settled(self) -> bool:
        """Whether more pairs would tell nothing that matters: a claim, or equality within a few percent."""
        narrow = self.high / self.low < 1.06
        return self.pairs >= LEAST_PAIRS and (self.significant or narrow)

    def to_dict(self) -> dict[str, object]:
        numbers = {name: round(getattr(self, name), 4) for name in ("median", "low", "high")}
        return {"to": "baseline", **numbers, "significant": self.significant, "pairs": self.pairs}


def ratio_of(base: Sequence[float], other: Sequence[float]) -> Ratio | None:
    """Of the seconds of two sides, pair by pair. None for fewer than two pairs."""
    if len(base) != len(other):
        raise ValueError(f"`len(base) == len(other)` must hold, but got {len(base)} and {len(other)}")
    if len(base) < 2:
        return None
    logs = np.sort(np.log(np.asarray(base, float)) - np.log(np.asarray(other, float)))
    middle, half = logs.mean(), _t(len(logs)) * logs.std(ddof=1) / math.sqrt(len(logs))
    outermost = _rank(len(logs))
    low, high = min(middle - half, logs[outermost]), max(middle + half, logs[-1 - outermost])
    with np.errstate(over="ignore"):  # two wild pairs can have an interval beyond every number
        low, high = float(np.exp(low)), float(np.minimum(np.exp(high), 1e300))
    return Ratio(float(np.exp(np.median(logs))), max(low, 1e-300), high, len(logs))


def _t(count: int) -> float:
    return T99[min(count - 1, len(T99)) - 1]


def _rank(count: int) -> int:
    """How many of the sorted ratios may lie beyond each end of an interval for the median at LEVEL."""
    tail, rank = 0.5**count, 0
    while 2 * tail <= LEVEL and rank < count // 2:
        rank += 1
        tail += math.comb(count, rank) * 0.5**count
    return max(0, rank - 1)

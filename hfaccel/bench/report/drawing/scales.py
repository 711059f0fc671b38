"""Scales: from numbers to coordinates, with round numbers to write beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEAST = 1e-90  # smaller numbers are none
FEW = 3.0  # a logarithmic scale whose ends differ by less than this has ticks of a linear one


@dataclass(frozen=True)
class Scale:
    """From `low` at coordinate `start` to `high` at coordinate `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (_log(part) if self.log else part for part in (self.low, self.high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def _log(value: float) -> float:
    return math.log(max(value, 1e-300))


def fitting(values: Iterable[float], start: float, end: float, log: bool, from_zero: bool = False) -> Scale:
    """A scale for these values, with some room at both ends."""
    known = [value for value in values if value > 0 or not log]
    low, high = (min(known), max(known)) if known else (0.1 if log else 0.0, 1.0)
    if log:
        low, high = (min(max(value, LEAST), 1 / LEAST) for value in (low, high))
        room = max((high / low) ** 0.07, 1.12)
        return Scale(low / room, high * room, start, end, log)
    low = min(low, 0.0) if from_zero else low
    largest = max(abs(low), abs(high))
    room = 0.08 * (high - low) if high - low > 1e-9 * largest else 0.1 * largest
    room = room if room > LEAST else 1.0
    return Scale(low if from_zero else low - room, high + room, start, end)


def ticks(scale: Scale, most: int = 6) -> list[float]:
    """Round numbers within a scale."""
    if scale.log and scale.high / scale.low >= FEW:
        return _log_ticks(scale.low, scale.high, most)
    return _linear_ticks(scale.low, scale.high, most)


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    found: list[float] = []
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = [float(f"{mantissa}e{decade}") for decade in decades for mantissa in mantissas]
        found = [value for value in every if low <= value <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def apart(places: Sequence[tuple[float, float]]) -> list[int]:
    """Which of these texts, each with its middle and its width, are written without touching: the
    last one, and before that as many as there is room for."""
    kept: list[int] = []
    free = math.inf
    for number in reversed(range(len(places))):
        middle, width = places[number]
        if middle + width / 2 <= free:
            kept.append(number)
            free = middle - width / 2 - 4
    return kept[::-1]

"""What is sought: a number for what was measured, of which less is better; hopeless trials. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hfaccel.errors import UsageError

Kind = Literal["latency", "throughput", "report"]
KINDS = ("latency", "throughput", "report")
FEW = 2  # samples after which a trial may be given up
HOPELESS = 1.3  # times the best score, by the better of the samples
BEYOND = 1e6  # ms an item: above every measured score, so that what breaks the limit is behind what does not


@dataclass(frozen=True)
class Measured:
    """What a trial has measured so far."""

    samples: tuple[float, ...]  # seconds in which the work is done once by all instances together
    calls: tuple[float, ...]  # seconds of single calls
    items: int = 1  # of the unit, in one call

    @property
    def throughput(self) -> float:
        """Items a second."""
        return self.items / float(np.median(self.samples))


@dataclass(frozen=True)
class Objective:
    """`percentile`: of the times of calls, for latency and for the limit. `limit`: ms that throughput must
    keep. `maximize`: of what a script reports."""

    kind: Kind = "latency"
    percentile: float = 50.0
    limit: float | None = None
    maximize: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"the objective must be one of {', '.join(KINDS)}, but got {self.kind!r}")
        if not 0 < self.percentile < 100:
            raise UsageError(f"`0 < percentile < 100` must hold, but got {self.percentile:g}")
        if self.limit is not None and not 0 < self.limit < math.inf:
            raise UsageError(f"`0 < limit` ms must hold, but got {self.limit:g}")
        if self.limit is not None and self.kind != "throughput":
            raise UsageError(f"a limit is for the objective throughput, but got the objective {self.kind}")

    def score(self, measured: Measured) -> float:
        """Less is better."""
        if self.kind == "report":
            value = float(np.median(measured.samples))
            return 1 / value if self.maximize else value
        if self.kind == "latency":
            return self.latency(measured)
        excess = self.excess(measured)
        return BEYOND * excess if excess > 1 else 1e3 / measured.throughput

    def latency(self, measured: Measured) -> float:
        """Milliseconds of a call, at the percentile."""
        return float(np.percentile(measured.calls, self.percentile)) * 1e3

    def excess(self, measured: Measured) -> float:
        """How many times the limit the latency is; 0 without a limit."""
        return self.latency(measured) / self.limit if self.limit else 0.0

    def is_kept(self, score: float) -> bool:
        """Whether the limit was kept."""
        return self.limit is None or score < BEYOND

    def value(self, score: float) -> float:
        """What a score means, in the unit."""
        if self.kind == "throughput" and self.is_kept(score):
            return 1e3 / score
        return 1 / score if self.maximize else score

    @property
    def unit(self) -> str:
        return {"latency": "ms", "throughput": "items/s", "report": ""}[self.kind]

    def __str__(self) -> str:
        if self.kind == "report":
            return f"what the script reports, the {'most' if self.maximize else 'least'}"
        if self.kind == "latency":
            return f"latency, p{self.percentile:g}"
        limit = f" with p{self.percentile:g} within {self.limit:g} ms" if self.limit else ""
        return f"throughput{limit}"


def is_hopeless(scores: Sequence[float], best: float) -> bool:
    """Whether a trial with these scores of its samples can be given up. `best`: the best trial's."""
    if len(scores) < FEW or not math.isfinite(best) or best <= 0:
        return False
    return min(scores) > best * HOPELESS

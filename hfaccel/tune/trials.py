"""One trial: a setting is measured, and what became of that. The machine is whatever settings run on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hfaccel.bench.pairs import Sample
from hfaccel.bench.setting import Setting
from hfaccel.errors import HfaccelError
from hfaccel.tune.objective import HOPELESS, Measured, Objective, is_hopeless

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"


class TrialFailed(HfaccelError):
    """A setting cannot be measured; the search goes on without it."""


class Runner(Protocol):
    """One setting, ready to be measured. `sample` raises TrialFailed."""

    def sample(self) -> Sample: ...


class Machine(Protocol):
    """Whatever settings are measured on. `open` raises TrialFailed."""

    @property
    def items(self) -> int: ...  # of the unit, in one call

    def open(self, setting: Setting) -> AbstractContextManager[Runner]: ...


@dataclass(frozen=True)
class Trial:
    """What became of one setting. `score`: less is better; of a pruned trial, as far as it was measured."""

    number: int
    setting: Setting
    state: str
    score: float | None = None
    reason: str = ""
    seconds: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)


def attempt(
    machine: Machine, setting: Setting, objective: Objective, samples: int, best: float, number: int
) -> Trial:
    """Measure a setting, until it is hopeless beside `best`, the best score so far."""
    start, taken = time.monotonic(), list[Sample]()
    try:
        pruned = _take(machine, setting, objective, samples, best, taken)
    except TrialFailed as error:
        return Trial(number, setting, FAILED, None, str(error), _since(start))
    found = measured(taken, machine.items)
    reason = (
        f"given up after {len(taken)} samples: another trial is {HOPELESS:g} times as good" if pruned else ""
    )
    state = PRUNED if pruned else COMPLETE
    return Trial(number, setting, state, objective.score(found), reason, _since(start), _figures(found))


def _take(
    machine: Machine, setting: Setting, objective: Objective, samples: int, best: float, taken: list[Sample]
) -> bool:
    """Whether the trial was given up."""
    with machine.open(setting) as runner:
        while len(taken) < samples:
            taken.append(runner.sample())
            scores = [objective.score(measured([sample], machine.items)) for sample in taken]
            if len(taken) < samples and is_hopeless(scores, best):
                return True
    return False


def measured(taken: Sequence[Sample], items: int) -> Measured:
    seconds = tuple(float(sample["seconds"]) for sample in taken)
    calls = tuple(float(call) for sample in taken for call in sample.get("calls", [sample["seconds"]]))
    return Measured(seconds, calls, items)


def _since(start: float) -> float:
    return round(time.monotonic() - start, 3)


def _figures(found: Measured) -> dict[str, float]:
    calls = np.array(found.calls) * 1e3
    times = {f"p{share}_ms": float(np.percentile(calls, share)) for share in (50, 90, 99)}
    return {name: float(f"{value:.5g}") for name, value in {**times, "throughput": found.throughput}.items()}

"""The search: which settings are tried, in which order, and what becomes of each trial.

First come the default and what hfaccel's rules would try, then by turns Optuna's sampler and a model of the
effects (hfaccel.tune.model). A trial that fails is kept with its reason, and the search goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from hfaccel.bench.pairs import Sample
from hfaccel.bench.setting import Setting
from hfaccel.errors import HfaccelError
from hfaccel.tune.model import Tried, propose
from hfaccel.tune.objective import Measured, Objective, is_hopeless
from hfaccel.tune.space import Axis, Point, Space, Value, first_points

if TYPE_CHECKING:
    import optuna

REPEATS = 8  # proposals of what was tried already, before the model is asked instead
ALL_FAILED = 5  # trials without one that succeeds, after which the search is given up
LEARNING = 6  # trials before the model is asked


class TrialFailed(HfaccelError):
    """A setting cannot be measured; the search goes on without it."""


class Runner(Protocol):
    """One setting, ready to be measured. `sample` raises TrialFailed."""

    def sample(self) -> Sample: ...


class Machine(Protocol):
    """Whatever settings are measured on. `open` raises TrialFailed."""

    items: int  # of the unit, in one call

    def open(self, setting: Setting) -> AbstractContextManager[Runner]: ...


@dataclass(frozen=True)
class Trial:
    """What became of one setting. `state`: "complete", "pruned" (given up as hopeless) or "failed"."""

    number: int
    setting: Setting
    point: Point
    state: str
    score: float | None = None  # less is better; of a pruned trial, as far as it was measured
    reason: str = ""
    seconds: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Search:
    study: optuna.Study
    space: Space
    objective: Objective
    machine: Machine
    samples: int = 3  # of a trial that is not pruned
    progress: Callable[[Trial], None] = lambda trial: None

    def run(self, trials: int) -> list[Trial]:
        """Go on until there are so many trials, or nothing is left to try. Raises HfaccelError where all fail.

        Ctrl-C keeps every trial that has ended."""
        self._end_abandoned()
        while len(found := self.trials()) < trials:
            _check_some_work(found)
            if (asked := self._ask(found)) is None:
                break
            self.progress(self._measure(*asked, best=_best(found)))
        _check_some_work(found, least=1)
        return found

    def trials(self) -> list[Trial]:
        """Those that have ended by themselves, each of another setting."""
        kept = [each for each in self.study.get_trials(deepcopy=False) if "state" in each.user_attrs]
        return [_trial_of(number, each) for number, each in enumerate(kept)]

    # What is next

    def _ask(self, found: list[Trial]) -> tuple[optuna.Trial, Point] | None:
        """The next trial with its point; None where every setting was tried."""
        seen = {trial.setting: trial for trial in found}
        planned = self._planned(found)
        if planned is not None:
            return self._asked_for(planned)
        for _ in range(REPEATS):
            trial = self.study.ask()
            point = {axis.name: _suggest(trial, axis) for axis in self.space.axes}
            known = seen.get(self.space.setting(point))
            if known is None and not self._is_impossible(point, found):
                return trial, point
            self._tell(trial, known.score if known else None)
        rest = propose(self.space, _tried(found), set(seen))
        return None if rest is None else self._asked_for(rest)

    def _planned(self, found: list[Trial]) -> Point | None:
        seen = {trial.setting for trial in found}
        for point in first_points(self.space, self.objective.kind == "throughput"):
            if self.space.setting(point) not in seen:
                return point
        if len(found) < LEARNING or len(found) % 2:
            return None
        return propose(self.space, _tried(found), seen)

    def _asked_for(self, point: Point) -> tuple[optuna.Trial, Point]:
        self.study.enqueue_trial({axis.name: _stored(axis, point[axis.name]) for axis in self.space.axes})
        trial = self.study.ask()
        for axis in self.space.axes:
            _suggest(trial, axis)
        return trial, point

    def _is_impossible(self, point: Point, found: list[Trial]) -> bool:
        """Whether this engine has failed twice, and never worked."""
        states = [trial.state for trial in found if trial.point.get("engine") == point.get("engine")]
        return "engine" in point and len(states) > 1 and set(states) == {"failed"}

    # One trial

    def _measure(self, trial: optuna.Trial, point: Point, best: float) -> Trial:
        start = time.monotonic()
        setting = self.space.setting(point)
        taken: list[Sample] = []
        reason, state = "", "complete"
        try:
            state = self._take(setting, taken, best)
        except TrialFailed as error:
            state, reason = "failed", str(error)
        except BaseException:
            self._tell(trial, None)  # not kept: it is tried again when the search goes on
            raise
        if state == "pruned":
            reason = f"given up after {len(taken)} samples: the best trial is more than 1.3 times as good"
        measured = self.measured(taken) if state != "failed" else None
        score = None if measured is None else self.objective.score(measured)
        kept = {
            "state": state,
            "reason": reason,
            "setting": setting.to_dict(),
            "point": dict(point),
            "seconds": round(time.monotonic() - start, 3),
            "score": score,
            "figures": {} if measured is None else _figures(measured),
        }
        for name, value in kept.items():
            if name != "state":
                trial.set_user_attr(name, value)
        trial.set_user_attr("state", state)  # the last: a trial that has one is complete in the file
        self._tell(trial, score)
        return self.trials()[-1]

    def _take(self, setting: Setting, taken: list[Sample], best: float) -> str:
        with self.machine.open(setting) as runner:
            for _ in range(self.samples):
                taken.append(runner.sample())
                scores = [self.objective.score(self.measured([sample])) for sample in taken]
                if len(taken) < self.samples and is_hopeless(scores, best):
                    return "pruned"
        return "complete"

    def measured(self, taken: list[Sample]) -> Measured:
        seconds = tuple(float(sample["seconds"]) for sample in taken)
        calls = tuple(float(call) for sample in taken for call in sample.get("calls", [sample["seconds"]]))
        return Measured(seconds, calls, self.machine.items)

    def _tell(self, trial: optuna.Trial, score: float | None) -> None:
        import optuna

        failed = score is None or not math.isfinite(score)
        self.study.tell(trial, None if failed else score, optuna.trial.TrialState.FAIL if failed else None)

    def _end_abandoned(self) -> None:
        """Trials that were under way when the process was killed."""
        import optuna

        for trial in self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _suggest(trial: optuna.Trial, axis: Axis) -> Value:
    if axis.ordered:
        return axis.values[trial.suggest_int(axis.name, 0, len(axis.values) - 1)]
    words = [str(value) for value in axis.values]
    return axis.values[words.index(trial.suggest_categorical(axis.name, words))]


def _stored(axis: Axis, value: Value) -> str | int:
    return axis.values.index(value) if axis.ordered else str(value)


def _trial_of(number: int, stored: optuna.trial.FrozenTrial) -> Trial:
    kept = dict(stored.user_attrs)
    return Trial(number, Setting.from_dict(kept.pop("setting")), **kept)


def _tried(found: list[Trial]) -> list[Tried]:
    return [Tried(trial.point, trial.score) for trial in found]


def _best(found: list[Trial]) -> float:
    return min((trial.score for trial in found if trial.score is not None), default=math.inf)


def _figures(measured: Measured) -> dict[str, float]:
    import numpy as np

    calls = np.array(measured.calls) * 1e3
    figures = {f"p{share}_ms": float(np.percentile(calls, share)) for share in (50, 90, 99)}
    return {name: round(value, 4) for name, value in {**figures, "throughput": measured.throughput}.items()}


def _check_some_work(found: list[Trial], least: int = ALL_FAILED) -> None:
    if len(found) >= least and all(trial.state == "failed" for trial in found):
        reasons = list(dict.fromkeys(trial.reason for trial in found))
        more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
        raise HfaccelError(f"some trial must succeed, but all {len(found)} failed: {reasons[0]}{more}")

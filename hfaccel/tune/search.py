"""The search: which settings are tried, in which order.

First come the default and what hfaccel's rules would try, then by turns Optuna's sampler and a model of the
effects (hfaccel.tune.model). A trial that fails is kept with its reason, and the search goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from hfaccel.bench.setting import Setting
from hfaccel.errors import HfaccelError
from hfaccel.tune.model import Candidates, Tried
from hfaccel.tune.objective import Objective
from hfaccel.tune.space import Axis, Space, Value, first_settings
from hfaccel.tune.trials import FAILED, Machine, Trial, attempt

if TYPE_CHECKING:
    import optuna

REPEATS = 8  # proposals of what was tried already, before the model is asked instead
ALL_FAILED = 5  # trials without one that succeeds, after which the search is given up
LEARNING = 6  # trials before the model is asked
KEPT = "trial"  # the attribute of a finished trial


@dataclass
class Search:
    study: optuna.Study
    space: Space
    objective: Objective
    machine: Machine
    samples: int = 3  # of a trial that is not given up
    progress: Callable[[Trial], None] = lambda trial: None
    found: list[Trial] = field(default_factory=list)

    def run(self, trials: int) -> list[Trial]:
        """Go on until there are so many trials, or nothing is left. Raises HfaccelError where all fail.

        Ctrl-C keeps every trial that has ended; the one under way is tried again when the search goes on.
        """
        self._read()
        while len(self.found) < trials:
            check_some_work(self.found, ALL_FAILED)
            asked = self._ask()
            if asked is None:
                break
            self._measure(*asked)
        check_some_work(self.found, 1)
        return self.found

    def _read(self) -> None:
        """The trials of the storage; those that were under way when the search was stopped are ended."""
        import optuna

        stored = self.study.get_trials(deepcopy=False)
        self.found = [_trial_of(trial.user_attrs[KEPT]) for trial in stored if KEPT in trial.user_attrs]
        for trial in stored:
            if trial.state == optuna.trial.TrialState.RUNNING:
                self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    # What is next

    @cached_property
    def _candidates(self) -> Candidates:
        return Candidates(self.space)

    def _ask(self) -> tuple[optuna.Trial, Setting] | None:
        """The next setting, with its trial; None where every setting was tried."""
        planned = self._planned()
        if planned is not None:
            return self._asked_for(planned), planned
        known = {trial.setting: trial for trial in self.found}
        for _ in range(REPEATS):
            trial = self.study.ask()
            setting = self.space.setting({axis.name: _suggest(trial, axis) for axis in self.space.axes})
            if setting not in known and not self._is_impossible(setting):
                return trial, setting
            self._tell(trial, known[setting].score if setting in known else None)
        rest = self._candidates.propose(self._tried())
        return None if rest is None else (self._asked_for(rest), rest)

    def _planned(self) -> Setting | None:
        known = {trial.setting for trial in self.found}
        first = first_settings(self.space, self.objective.kind == "throughput")
        if unseen := [setting for setting in first if setting not in known]:
            return unseen[0]
        if len(self.found) < LEARNING or len(self.found) % 2:
            return None
        return self._candidates.propose(self._tried())

    def _tried(self) -> list[Tried]:
        return [Tried(trial.setting, trial.score) for trial in self.found]

    def _is_impossible(self, setting: Setting) -> bool:
        """Whether this engine has failed twice, and never worked."""
        engine = (setting.backend, setting.precision)
        same = [one.state for one in self.found if (one.setting.backend, one.setting.precision) == engine]
        return len(same) > 1 and set(same) == {FAILED}

    # Optuna's trials

    def _asked_for(self, setting: Setting) -> optuna.Trial:
        point = self.space.point(setting)
        self.study.enqueue_trial({axis.name: _stored(axis, point[axis.name]) for axis in self.space.axes})
        trial = self.study.ask()
        for axis in self.space.axes:
            _suggest(trial, axis)
        return trial

    def _measure(self, trial: optuna.Trial, setting: Setting) -> None:
        best = min((each.score for each in self.found if each.score is not None), default=math.inf)
        number = len(self.found)
        done = attempt(self.machine, setting, self.objective, self.samples, best, number)
        trial.set_user_attr(KEPT, {**asdict(done), "setting": setting.to_dict()})
        self._tell(trial, done.score)
        self.found.append(done)
        self.progress(done)

    def _tell(self, trial: optuna.Trial, score: float | None) -> None:
        import optuna

        if score is None or not math.isfinite(score):
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(trial, score)


def _suggest(trial: optuna.Trial, axis: Axis) -> Value:
    if axis.ordered:
        return axis.values[trial.suggest_int(axis.name, 0, len(axis.values) - 1)]
    words = [str(value) for value in axis.values]
    return axis.values[words.index(trial.suggest_categorical(axis.name, words))]


def _stored(axis: Axis, value: Value) -> str | int:
    return axis.values.index(value) if axis.ordered else str(value)


def _trial_of(kept: dict[str, object]) -> Trial:
    setting = Setting.from_dict(kept["setting"])  # type: ignore[arg-type]
    return Trial(**{**kept, "setting": setting})  # type: ignore[arg-type]


def check_some_work(found: list[Trial], least: int) -> None:
    """Raise HfaccelError where so many trials have ended and all of them failed."""
    if len(found) >= least and all(trial.state == FAILED for trial in found):
        reasons = list(dict.fromkeys(trial.reason for trial in found))
        more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
        raise HfaccelError(f"some trial must succeed, but all {len(found)} failed: {reasons[0]}{more}")

"""The end of a search: the best trials against the default, in turn: neither luck nor drift decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hfaccel.bench.pairs import Sample, take_turn
from hfaccel.bench.setting import Setting
from hfaccel.bench.statistics import LOOKS, Ratio, ratio_of
from hfaccel.tune.objective import Objective
from hfaccel.tune.trials import COMPLETE, Machine, Runner, Trial, TrialFailed, measured

LEADERS = 3


@dataclass(frozen=True)
class Standing:
    """A leader after its turns with the base. `ratio`: how many times better than the base it is."""

    setting: Setting
    score: float | None = None
    base_score: float | None = None
    ratio: Ratio | None = None
    problem: str = ""

    @property
    def gain(self) -> float:
        """How many times better it is by the cautious one of two measures: stalls of a busy machine can
        make single pairs as different as one likes."""
        if self.ratio is None or self.score is None or self.base_score is None:
            return 0.0
        return min(self.ratio.median, self.base_score / self.score)

    def claimed_unless(self, disturbed: bool) -> Standing:
        """The same, whose gain is no claim where other programs disturbed the turns."""
        return replace(self, ratio=self.ratio and replace(self.ratio, disturbed=disturbed))


def leaders(found: Sequence[Trial], default: Setting) -> list[Setting]:
    """The best trials, without the default."""
    complete = [one for one in found if one.state == COMPLETE and one.score is not None]
    ranked = sorted(complete, key=lambda one: (one.score, one.number))
    return [one.setting for one in ranked if one.setting != default][:LEADERS]


def winner(standings: Sequence[Standing], objective: Objective) -> Standing | None:
    """The one that gains most of those whose gain is no noise; None where that is nobody."""
    better = [
        one
        for one in standings
        if one.ratio is not None and one.ratio.significant and one.gain > 1
        if one.score is not None and objective.is_kept(one.score)
    ]
    return max(better, key=lambda one: one.gain, default=None)


@dataclass
class _Kept:
    """A runner whose failure is kept, so that the turn of the other is not lost."""

    runner: Runner
    samples: list[Sample] = field(default_factory=list)
    problem: str = ""

    def sample(self) -> Sample:
        try:
            return {} if self.problem else self.runner.sample()
        except TrialFailed as error:
            self.problem = str(error)
            return {}


def duel(machine: Machine, objective: Objective, base: Setting, other: Setting, rounds: int) -> Standing:
    """The other against the base, in turn. Two sides at a time: memory may hold no more."""
    try:
        with machine.open(base) as one, machine.open(other) as two:
            sides = (_Kept(one), _Kept(two))
            ratio = _take_turns(machine, objective, sides, rounds)
    except TrialFailed as error:
        return Standing(other, problem=str(error))
    if problem := next((side.problem for side in sides if side.problem), ""):
        return Standing(other, problem=problem)
    base_score, score = (objective.score(measured(side.samples, machine.items)) for side in sides)
    return Standing(other, score, base_score, ratio)


def _take_turns(
    machine: Machine, objective: Objective, sides: tuple[_Kept, _Kept], rounds: int
) -> Ratio | None:
    """The first turn does not count."""
    take_turn(sides, 0)
    ratio = None
    for number in range(1, LOOKS * rounds + 1):
        turn = take_turn(sides, number)
        if any(side.problem for side in sides):
            return None
        for side, sample in zip(sides, turn, strict=True):
            side.samples.append(sample)
        if number % rounds == 0:
            scores = [
                [objective.score(measured([each], machine.items)) for each in side.samples] for side in sides
            ]
            ratio = ratio_of(*scores)
            if ratio is not None and ratio.settled:
                break
    return ratio

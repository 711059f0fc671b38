"""The end of a search: who wins against the default, and that luck does not."""

from __future__ import annotations

import itertools
import math
from contextlib import contextmanager

import pytest
from simulated import Simulated, host

from hfaccel.bench import pairs
from hfaccel.tune.leaders import duel, leaders, winner
from hfaccel.tune.objective import Objective
from hfaccel.tune.space import Asked, make_space
from hfaccel.tune.trials import Trial, TrialFailed

SPACE = make_space(host(2), Asked(throughput=True))
SETTINGS = list(SPACE.settings)
DEFAULT = SPACE.default
OTHERS = [setting for setting in SETTINGS if setting != DEFAULT][:3]
OBJECTIVE = Objective("throughput")


class Both(Simulated):
    """Two settings are open at a time; each runner has its own cost."""

    @contextmanager
    def open(self, setting):
        if reason := self.failing(setting):
            raise TrialFailed(reason)
        self.opened.append(setting)
        yield Runner(self, setting)


class Runner:
    def __init__(self, machine, setting):
        self.machine, self.setting = machine, setting

    def sample(self):
        self.machine.sampled += 1
        if self.machine.sampled == getattr(self.machine, "dies_at", 0):
            raise TrialFailed("killed")
        noise = math.exp(self.machine.chance.gauss(0, self.machine.noise))
        seconds = self.machine.cost(self.setting) * noise
        return {"seconds": seconds, "calls": [seconds]}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(pairs, "SETTLE", 0)


def decided(cost, objective=OBJECTIVE, **settings):
    machine = Both(cost, **settings)
    standings = [duel(machine, objective, DEFAULT, other, 7) for other in OTHERS]
    return winner(standings, objective), standings, machine


def test_leaders_are_the_best_complete_trials_without_the_default():
    found = [
        Trial(0, DEFAULT, "complete", 1.0),
        Trial(1, SETTINGS[5], "complete", 4.0),
        Trial(2, SETTINGS[6], "pruned", 0.5),
        Trial(3, SETTINGS[7], "failed"),
        Trial(4, SETTINGS[8], "complete", 2.0),
        Trial(5, SETTINGS[9], "complete", 3.0),
        Trial(6, SETTINGS[10], "complete", 5.0),
    ]
    assert leaders(found, DEFAULT) == [SETTINGS[8], SETTINGS[9], SETTINGS[5]]


def test_the_one_that_gains_most_wins():
    costs = {DEFAULT: 1.0, OTHERS[0]: 0.95, OTHERS[1]: 0.8, OTHERS[2]: 1.2}
    best, standings, _ = decided(costs.__getitem__, noise=0.01)
    assert best.setting == OTHERS[1] and best.gain == pytest.approx(1.25, rel=0.02)
    assert [one.setting for one in standings] == OTHERS


def test_the_default_wins_ties():
    """Of 60 searches in which nothing is better, hardly any finds something."""
    wins = [decided(lambda one: 1.0, noise=0.05, seed=seed)[0] for seed in range(60)]
    assert sum(one is not None for one in wins) <= 3


def test_nobody_wins_by_less_than_the_default():
    assert decided(lambda one: 1.0 if one == DEFAULT else 1.1, noise=0.01)[0] is None


def test_stalls_of_a_busy_machine_do_not_make_the_gain():
    """The default stalls in most turns, but not in most of its calls."""

    class Stalling(Both):
        @contextmanager
        def open(self, setting):
            calls = itertools.cycle([[9.0], [9.0], [1.0] * 9] if setting == DEFAULT else [[0.8]])
            yield type("Runner", (), {"sample": lambda self: {"seconds": 1.0, "calls": next(calls)}})()

    standing = duel(Stalling(lambda one: 1.0), Objective(), DEFAULT, OTHERS[0], 7)
    assert standing.ratio.median > 10 and standing.gain == pytest.approx(1.25)


def test_a_gain_on_a_busy_machine_is_no_claim():
    best, standings, _ = decided(lambda one: 1.0 if one == DEFAULT else 0.5, noise=0.01)
    assert best is not None
    assert winner([one.claimed_unless(True) for one in standings], OBJECTIVE) is None
    assert winner([one.claimed_unless(False) for one in standings], OBJECTIVE) == best


def test_what_breaks_the_limit_does_not_win():
    costs = {DEFAULT: 0.1, OTHERS[0]: 0.02, OTHERS[1]: 0.08, OTHERS[2]: 0.09}
    objective = Objective("throughput", 50, limit=0.000_01)
    assert decided(costs.__getitem__, objective, noise=0.01)[0] is None


def test_a_leader_that_fails_is_out_and_says_why():
    costs = {DEFAULT: 1.0, OTHERS[0]: 0.1, OTHERS[1]: 0.8, OTHERS[2]: 0.9}
    best, standings, _ = decided(
        costs.__getitem__, noise=0.01, failing=lambda one: "no" if one == OTHERS[0] else ""
    )
    assert best.setting == OTHERS[1]
    assert (standings[0].problem, standings[0].ratio, standings[0].gain) == ("no", None, 0.0)


def test_one_that_dies_in_a_turn_is_out():
    class Dying(Both):
        dies_at = 6

    machine = Dying(lambda one: 1.0 if one == DEFAULT else 0.5, noise=0.01)
    standings = [duel(machine, OBJECTIVE, DEFAULT, other, 5) for other in OTHERS]
    assert standings[0].problem == "killed" and standings[1].gain > 1.9

"""The search on simulated machines: how good it is, and what it does when something fails."""

from __future__ import annotations

import statistics

import pytest
from simulated import Simulated, Surface, host

from hfaccel.errors import HfaccelError, UsageError
from hfaccel.tune.objective import Objective
from hfaccel.tune.search import Search
from hfaccel.tune.space import Asked, make_space
from hfaccel.tune.storage import open_study

SEEDS = 50
LARGE = make_space(host(80, nodes=2), Asked(throughput=True))
LARGE_LATENCY = make_space(host(80, nodes=2), Asked())
SMALL = make_space(host(2), Asked(throughput=True))
KINDS = {True: Objective("throughput"), False: Objective("latency")}


def search(space, machine, objective=KINDS[False], seed=0, **settings):
    with open_study(None, {}, seed) as study:
        yield Search(study, space, objective, machine, **settings)


def found(space, machine, trials, **settings):
    for one in search(space, machine, **settings):
        return one.run(trials)


def quality(space, throughput, seed, looks):
    """After so many trials each: the best cost there is, over that of what the search would recommend."""
    cost = Surface(seed, space, throughput)
    done = found(space, Simulated(cost, seed=seed), looks[-1], objective=KINDS[throughput], seed=seed)
    best = min(map(cost, space.settings))
    return [best / cost_of_leaders(cost, done[:look]) for look in looks]


def cost_of_leaders(cost, done):
    """Which of the leaders is the best is measured again at the end."""
    leaders = sorted((one for one in done if one.state == "complete"), key=lambda one: one.score)[:3]
    return min(cost(one.setting) for one in [*leaders, done[0]])


@pytest.mark.parametrize(
    ("space", "throughput", "wanted"),
    [
        pytest.param(LARGE, True, {15: 0.95, 25: 0.97}, id="1980 settings, throughput"),
        pytest.param(LARGE_LATENCY, False, {15: 0.97}, id="240 settings, latency"),
        pytest.param(SMALL, True, {15: 0.97}, id="two cores, throughput"),
    ],
)
def test_few_trials_find_nearly_the_best(space, throughput, wanted):
    found_by = [quality(space, throughput, seed, list(wanted)) for seed in range(SEEDS)]
    medians = [statistics.median(shares) for shares in zip(*found_by, strict=True)]
    assert [median >= share for median, share in zip(medians, wanted.values(), strict=True)] == [True] * len(
        wanted
    ), medians


def test_the_default_is_the_first_trial():
    machine = Simulated(Surface(0, SMALL, True))
    assert found(SMALL, machine, 1)[0].setting == SMALL.default == machine.opened[0]


def test_no_setting_is_measured_twice():
    machine = Simulated(Surface(1, SMALL, True))
    done = found(SMALL, machine, 40)
    assert len(set(machine.opened)) == len(machine.opened) == len(done) == 40
    assert [one.number for one in done] == list(range(40))


def test_a_space_can_be_exhausted():
    space = make_space(host(1, intel=False, allocators=(), thp="never"), Asked())
    assert len(space.settings) == 6
    assert len(found(space, Simulated(lambda setting: 1.0), 100)) == 6


def test_the_same_seed_gives_the_same_trials():
    cost = Surface(3, LARGE, True)
    first, second, other = (found(LARGE, Simulated(cost, seed=7), 12, seed=seed) for seed in (5, 5, 6))
    assert [one.setting for one in first] == [one.setting for one in second]
    assert [one.setting for one in first] != [one.setting for one in other]


def test_a_failed_trial_is_kept_with_its_reason_and_the_search_goes_on():
    machine = Simulated(
        Surface(0, SMALL, True), failing=lambda one: "no room" if one.wait_policy == "active" else ""
    )
    done = found(SMALL, machine, 20)
    failed = [one for one in done if one.state == "failed"]
    assert failed and {one.reason for one in failed} == {"no room"}
    assert all(one.score is None and not one.figures for one in failed)
    assert len(failed) < 8  # the model avoids them


def test_a_default_that_fails_does_not_end_the_search():
    machine = Simulated(Surface(0, SMALL, True), failing=lambda one: "no" if one == SMALL.default else "")
    assert [one.state for one in found(SMALL, machine, 8)].count("failed") == 1


def test_an_engine_that_fails_always_is_not_tried_for_ever():
    space = make_space(host(2), Asked(backends=("torch", "inductor", "openvino")))
    machine = Simulated(lambda one: 1.0, failing=lambda one: "" if one.backend == "torch" else "no compiler")
    done = found(space, machine, 30)
    assert len([one for one in done if one.state == "failed"]) <= 8


@pytest.mark.parametrize("trials", [3, 30])
def test_where_all_fail_the_search_ends_with_the_reason(trials):
    machine = Simulated(lambda one: 1.0, failing=lambda one: "exit code 3")
    with pytest.raises(HfaccelError, match=r"some trial must succeed, but all . failed: exit code 3$"):
        found(SMALL, machine, trials)
    assert len(machine.opened) <= 5


def test_hopeless_trials_are_given_up_after_few_samples():
    machine = Simulated(lambda one: 1.0 if one.threads == 2 else 2.0, noise=0.001)
    done = found(SMALL, machine, 12, samples=5)
    for one in done:
        pruned = one.setting.threads == 1
        assert one.state == ("pruned" if pruned else "complete")
        assert not pruned or "given up after 2 samples" in one.reason
    assert machine.sampled == sum(2 if one.state == "pruned" else 5 for one in done)


def test_what_breaks_the_limit_comes_behind_what_keeps_it():
    objective = Objective("throughput", 90, limit=150.0)

    def cost(one):
        return {1: 0.1, 2: 0.16}[one.instances] / one.instances

    class Calls(Simulated):
        def sample(self):
            taken = super().sample()
            return {**taken, "calls": [taken["seconds"] * self.opened[-1].instances]}

    done = found(SMALL, Calls(cost, noise=0), 20, objective=objective)
    best = min((one for one in done if one.score is not None), key=lambda one: one.score)
    assert best.setting.instances == 1 and objective.is_kept(best.score)
    assert not any(objective.is_kept(one.score) for one in done if one.setting.instances == 2)


# Kept in a file


IDENTITY = {"subject": "a model", "objective": "latency, p50"}


def stored(path, machine, trials, identity=IDENTITY, seed=0):
    with open_study(path, identity, seed) as study:
        return Search(study, SMALL, KINDS[True], machine).run(trials)


class Stopped(Simulated):
    """Ctrl-C during a sample."""

    def sample(self):
        if self.sampled == 7:
            raise KeyboardInterrupt
        return super().sample()


def test_a_stopped_search_goes_on_where_it_was(tmp_path):
    path, cost = tmp_path / "tune.db", Surface(0, SMALL, True)
    with pytest.raises(KeyboardInterrupt):
        stored(path, Stopped(cost), 10)
    again = Simulated(cost)
    done = stored(path, again, 10)
    assert len(done) == 10 and done[0].setting == SMALL.default
    assert 6 <= len(again.opened) <= 9 and not {one.setting for one in done[:1]} & set(again.opened)
    assert stored(path, Simulated(cost), 10) == done  # nothing is left to do


def test_a_search_that_was_killed_goes_on(tmp_path):
    path, cost = tmp_path / "tune.db", Surface(0, SMALL, True)
    stored(path, Simulated(cost), 4)
    with open_study(path, IDENTITY, 0) as study:
        study.ask()  # under way for ever
    done = stored(path, Simulated(cost), 6)
    assert len(done) == 6
    with open_study(path, IDENTITY, 0) as study:
        assert not [each for each in study.get_trials() if each.state.name == "RUNNING"]


def test_another_subject_is_refused(tmp_path):
    path = tmp_path / "tune.db"
    stored(path, Simulated(lambda one: 1.0), 2)
    with pytest.raises(UsageError, match=r"its subject is a model, not another.*give another --storage"):
        stored(path, Simulated(lambda one: 1.0), 2, {**IDENTITY, "subject": "another"})


@pytest.mark.parametrize("content", [b"no database at all, but long enough for a header " * 40, b"x"])
def test_a_file_of_something_else_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "tune.db"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="a storage must be a file of SQLite"):
        stored(path, Simulated(lambda one: 1.0), 2)
    assert path.read_bytes() == content


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    import sqlite3

    class Full(Simulated):
        def sample(self):
            if self.sampled == 4:
                raise sqlite3.OperationalError("database or disk is full")
            return super().sample()

    with pytest.raises(HfaccelError, match=r"must be a writable file of SQLite.*disk is full; make room"):
        stored(tmp_path / "tune.db", Full(lambda one: 1.0), 4)


def test_another_version_of_optuna_is_refused(tmp_path):
    import sqlite3

    path = tmp_path / "tune.db"
    stored(path, Simulated(lambda one: 1.0), 2)
    with sqlite3.connect(path) as database:
        database.execute("update alembic_version set version_num = 'v0.9.0.a'")
    with pytest.raises(UsageError, match="must be of the installed version of optuna"):
        stored(path, Simulated(lambda one: 1.0), 2)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a storage must be in a folder that exists"):
        stored(tmp_path / "no" / "tune.db", Simulated(lambda one: 1.0), 2)


def test_without_optuna_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UsageError, match=r"pip install 'hfaccel\[tune\]'"):
        stored(None, Simulated(lambda one: 1.0), 2)

"""Changes to the running process: what was done, and what the system refused, as Outcomes."""

from __future__ import annotations

import json
import os

import pytest
import torch
from conftest import replace

from hfaccel import configuration, native
from hfaccel.apply.process import (
    M_ARENA_MAX,
    M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD,
    apply_plan,
    retained_bytes,
)
from hfaccel.errors import UsageError
from hfaccel.host import Library, read_host
from hfaccel.plan import Choice, Plan

FACTS = read_host()
MIB, GIB = 1 << 20, 1 << 30


class Malloc:
    """Stands in for the extension: remembers the calls and refuses the options it is told to."""

    def __init__(self, refuses=()):
        self.refuses, self.calls = refuses, []

    def mallopt(self, option, value):
        self.calls.append((option, value))
        return option not in self.refuses


def facts(total, limit):
    return replace(
        FACTS,
        memory=replace(FACTS.memory, total=total),
        limits=replace(FACTS.limits, memory_limit=limit),
    )


def outcomes(given_facts=FACTS, **values):
    """Apply a plan with these values, and nothing for the other knobs; the outcome of each knob."""
    knobs = {"affinity": None, "allocator": None, "threads": None, **values}
    plan = Plan(tuple(Choice(knob, value, f"reason of {knob}") for knob, value in knobs.items()))
    return {outcome.subject: outcome for outcome in apply_plan(plan, given_facts)}


@pytest.fixture
def keeps_threads():
    threads = torch.get_num_threads()
    yield threads
    torch.set_num_threads(threads)


def test_what_is_left_as_it_is_has_its_reason(monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", lambda *given: pytest.fail("must not be called"))
    monkeypatch.setattr(native, "arena", malloc := Malloc())
    done = outcomes()
    assert set(done) == {"affinity", "allocator", "threads"}
    assert all(not o.applied and o.reason == f"reason of {knob}" for knob, o in done.items())
    assert malloc.calls == []


def test_affinity_is_really_set():
    mask = os.sched_getaffinity(0)
    try:
        outcome = outcomes(affinity=(min(mask),))["affinity"]
        assert outcome.applied and f"[{min(mask)}]" in outcome.reason
        assert os.sched_getaffinity(0) == {min(mask)}
    finally:
        os.sched_setaffinity(0, mask)


@pytest.mark.parametrize("error", [PermissionError(1, "not permitted"), OSError(22, "Invalid argument")])
def test_a_refused_affinity_is_an_outcome(monkeypatch, error):
    def refuse(pid, cpus):
        raise error

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    outcome = outcomes(affinity=(0, 1))["affinity"]
    assert not outcome.applied
    assert outcome.reason == f"sched_setaffinity([0, 1]) failed: {error.strerror}"


def test_a_cpu_that_does_not_exist_is_an_outcome():
    assert not outcomes(affinity=(1 << 15,))["affinity"].applied


def test_glibcs_settings_are_made_together(monkeypatch):
    """The mmap threshold alone would freeze the trim threshold at 128 KiB."""
    monkeypatch.setattr(native, "arena", malloc := Malloc())
    outcome = outcomes(facts(64 * GIB, None), allocator="glibc")["allocator"]
    assert outcome.applied and "1024 MiB" in outcome.reason
    assert dict(malloc.calls) == {M_ARENA_MAX: 1, M_TRIM_THRESHOLD: GIB, M_MMAP_THRESHOLD: GIB}


@pytest.mark.parametrize(
    ("option", "name"),
    [(M_ARENA_MAX, "arena_max"), (M_TRIM_THRESHOLD, "trim_threshold"), (M_MMAP_THRESHOLD, "mmap_threshold")],
)
def test_what_glibc_refuses_is_named(monkeypatch, option, name):
    monkeypatch.setattr(native, "arena", Malloc(refuses=(option,)))
    outcome = outcomes(allocator="glibc")["allocator"]
    assert not outcome.applied and outcome.reason == f"glibc refused {name}"


def test_every_refusal_is_named(monkeypatch):
    monkeypatch.setattr(native, "arena", Malloc(refuses=(M_ARENA_MAX, M_MMAP_THRESHOLD)))
    assert outcomes(allocator="glibc")["allocator"].reason == "glibc refused arena_max, mmap_threshold"


def test_a_library_cannot_be_loaded_afterwards(monkeypatch):
    monkeypatch.setattr(native, "arena", malloc := Malloc())
    outcome = outcomes(allocator=Library("mimalloc", "/lib/x.so"))["allocator"]
    assert not outcome.applied and "start with hfaccel-run" in outcome.reason
    assert malloc.calls == []


def test_without_the_native_part_its_cost_is_the_reason(monkeypatch):
    monkeypatch.setattr(native, "arena", None)
    monkeypatch.setattr(native, "MISSING", "the native part is missing: so much it costs")
    outcome = outcomes(allocator="glibc")["allocator"]
    assert not outcome.applied and outcome.reason == native.MISSING


@pytest.mark.parametrize(
    ("total", "limit", "retained"),
    [
        (64 * GIB, None, GIB),
        (4 * GIB, None, GIB // 2),
        (64 * GIB, 2 * GIB, GIB // 4),
        (2 * GIB, 64 * GIB, GIB // 4),
        (0, 4 * GIB, GIB // 2),
        (MIB, None, MIB),
        (0, 1, MIB),
        (1 << 50, 1 << 50, GIB),
    ],
)
def test_glibc_keeps_an_eighth_of_what_may_be_used(total, limit, retained):
    assert retained_bytes(facts(total, limit)) == retained


def test_unknown_memory_is_taken_to_be_little():
    assert MIB <= retained_bytes(facts(0, None)) <= GIB


def test_what_is_retained_fits_mallopts_int():
    for total in (0, 1, MIB, GIB, 1 << 60):
        assert 0 < retained_bytes(facts(total, None)) < 1 << 31


def test_threads_are_really_set(keeps_threads):
    outcome = outcomes(threads=1)["threads"]
    assert outcome.applied and torch.get_num_threads() == 1
    assert outcomes(threads=3)["threads"].applied and torch.get_num_threads() == 3


def test_threads_that_are_right_are_not_set_again(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail("must not be called"))
    assert outcomes(threads=torch.get_num_threads())["threads"].applied


@pytest.fixture
def configure(monkeypatch, keeps_threads):
    """configure() in a process that has not been configured, with a malloc that stays as it is."""
    monkeypatch.setattr(configuration, "_current", None)
    monkeypatch.setattr(native, "arena", Malloc())
    monkeypatch.setattr(os, "sched_setaffinity", lambda *given: None)
    return configuration.configure


def test_configure_is_done_once(configure):
    assert configure() is configure()


def test_configure_with_a_setting_is_done_again(configure):
    first, second = configure(), configure(threads=1)
    assert second is not first and configure() is second
    assert torch.get_num_threads() == 1
    assert {outcome.subject for outcome in second.outcomes} == {"affinity", "allocator", "threads"}
    assert second.plan["threads"].source == "user"


@pytest.mark.parametrize("settings", [{"thread": 1}, {"threads": 0}, {"allocator": "nonsense"}])
def test_configure_refuses_nonsense_and_changes_nothing(configure, settings, keeps_threads):
    with pytest.raises(UsageError, match="but got"):
        configure(**settings)
    assert configuration._current is None
    assert torch.get_num_threads() == keeps_threads


def test_a_configuration_is_plain_data(configure):
    described = json.loads(json.dumps(configure(threads=1).to_dict()))
    assert {"facts", "plan", "applied"} == set(described)

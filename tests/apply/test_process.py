"""Changes to the running process: what was done, and what the system refused, as Outcomes."""

from __future__ import annotations

import os

import pytest
import torch

from hfaccel import native
from hfaccel.apply.process import (
    M_ARENA_MAX,
    M_MMAP_THRESHOLD,
    M_TOP_PAD,
    M_TRIM_THRESHOLD,
    SLACK,
    apply_plan,
)
from hfaccel.host import Library
from hfaccel.plan import Choice, MemoryPolicy, Plan

GIB = 1 << 30
SUBJECTS = ("allocator", "memory_policy", "threads", "interop_threads", "affinity")


class Malloc:
    """Stands in for the extension: remembers the calls and refuses the options it is told to."""

    def __init__(self, refuses=(), error=None):
        self.refuses, self.error, self.calls = refuses, error, []

    def mallopt(self, option, value):
        self.calls.append((option, value))
        return option not in self.refuses

    def reserve_heap(self, size):
        self.calls.append(("reserve", size))
        if self.error is not None:
            raise self.error

    def memory_policy(self):
        return "default", ()

    def set_memory_policy(self, mode, nodes):
        self.calls.append((mode, nodes))
        if self.error is not None:
            raise self.error


def outcomes(**values):
    """Apply a plan with these values, and nothing for the other knobs; the outcome of each knob."""
    knobs = {**dict.fromkeys(SUBJECTS), "retained_memory": GIB, **values}
    plan = Plan(tuple(Choice(knob, value, f"reason of {knob}") for knob, value in knobs.items()))
    return {outcome.subject: outcome for outcome in apply_plan(plan)}


@pytest.fixture
def keeps_threads():
    threads = torch.get_num_threads()
    yield threads
    torch.set_num_threads(threads)


def test_what_is_left_as_it_is_has_its_reason(monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", lambda *given: pytest.fail("must not be called"))
    monkeypatch.setattr(native, "arena", malloc := Malloc())
    done = outcomes()
    assert tuple(done) == SUBJECTS
    assert all(not o.applied and o.reason == f"reason of {knob}" for knob, o in done.items())
    assert malloc.calls == []


def test_affinity_is_really_set():
    mask = os.sched_getaffinity(0)
    try:
        outcome = outcomes(affinity=(min(mask),))["affinity"]
        assert outcome.applied and outcome.reason == f"bound to CPUs {min(mask)}"
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


# Memory policy

PREFERRED = MemoryPolicy("preferred", (0,))


def test_a_memory_policy_is_set_with_its_nodes(monkeypatch):
    monkeypatch.setattr(native, "arena", arena := Malloc())
    outcome = outcomes(memory_policy=MemoryPolicy("interleave", (0, 1)))["memory_policy"]
    assert outcome.applied and "interleave:0-1" in outcome.reason
    assert arena.calls == [("interleave", (0, 1))]


@pytest.mark.skipif(native.arena is None, reason="the native part is missing")
def test_a_memory_policy_is_really_set():
    try:
        before = native.arena.memory_policy()
        outcome = outcomes(memory_policy=PREFERRED)["memory_policy"]
    except OSError as error:
        pytest.skip(f"no memory policies here: {error}")
    try:
        if outcome.applied:
            assert native.arena.memory_policy() == PREFERRED
        else:
            assert "set_mempolicy" in outcome.reason
    finally:
        native.arena.set_memory_policy(*before)


@pytest.mark.parametrize("error", [OSError(1, "set_mempolicy: Operation not permitted"), OSError(22, "why")])
def test_a_refused_memory_policy_is_an_outcome(monkeypatch, error):
    monkeypatch.setattr(native, "arena", Malloc(error=error))
    outcome = outcomes(memory_policy=PREFERRED)["memory_policy"]
    assert not outcome.applied and outcome.reason == error.args[-1]


@pytest.mark.skipif(native.arena is None, reason="the native part is missing")
def test_a_node_that_does_not_exist_is_an_outcome():
    outcome = outcomes(memory_policy=MemoryPolicy("bind", (1023,)))["memory_policy"]
    assert not outcome.applied and outcome.reason.startswith("set_mempolicy: ")


# malloc


def test_glibcs_settings_are_made_together_and_in_order(monkeypatch):
    """The mmap threshold alone would freeze the trim threshold at 128 KiB; the padding would double the
    reserve if it came first."""
    monkeypatch.setattr(native, "arena", malloc := Malloc())
    outcome = outcomes(allocator="glibc")["allocator"]
    assert outcome.applied and "up to 1024 MiB" in outcome.reason and outcome.reason.endswith("on huge pages")
    *settings, (reserve, size), padding = malloc.calls
    assert dict(settings) == {M_ARENA_MAX: 1, M_TRIM_THRESHOLD: GIB + SLACK, M_MMAP_THRESHOLD: GIB}
    assert settings.index((M_TRIM_THRESHOLD, GIB + SLACK)) < settings.index((M_MMAP_THRESHOLD, GIB))
    assert reserve == "reserve" and 0.9 * GIB < size < GIB  # as a whole below the mmap threshold
    assert padding == (M_TOP_PAD, GIB)


def test_a_heap_that_cannot_be_reserved_is_used_as_it_is(monkeypatch):
    error = OSError(95, "reserving the heap of 1 bytes at (nil): Operation not supported")
    monkeypatch.setattr(native, "arena", malloc := Malloc(error=error))
    outcome = outcomes(allocator="glibc")["allocator"]
    assert outcome.applied and outcome.reason.endswith("on ordinary pages (Operation not supported)")
    assert M_TOP_PAD not in dict(malloc.calls)


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


@pytest.mark.parametrize("wanted", [{"allocator": "glibc"}, {"memory_policy": PREFERRED}])
def test_without_the_native_part_its_cost_is_the_reason(monkeypatch, wanted):
    monkeypatch.setattr(native, "arena", None)
    monkeypatch.setattr(native, "MISSING", "the native part is missing: so much it costs")
    outcome = outcomes(**wanted)[next(iter(wanted))]
    assert not outcome.applied and outcome.reason == native.MISSING


# Threads


def test_threads_are_really_set(keeps_threads):
    outcome = outcomes(threads=1)["threads"]
    assert outcome.applied and torch.get_num_threads() == 1
    assert outcomes(threads=3)["threads"].applied and torch.get_num_threads() == 3


def test_threads_that_are_right_are_not_set_again(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail("must not be called"))
    assert outcomes(threads=torch.get_num_threads())["threads"].applied


@pytest.fixture
def interop(monkeypatch):
    """torch as if it had eight interop threads: `used` says whether they run already."""
    state = {"threads": 8, "used": False}

    def set_threads(number):
        if state["used"]:
            raise RuntimeError("cannot set number of interop threads after parallel work has started")
        state.update(threads=number, used=True)

    monkeypatch.setattr(torch, "get_num_interop_threads", lambda: state["threads"])
    monkeypatch.setattr(torch, "set_num_interop_threads", set_threads)
    return state


def test_interop_threads_are_set_once(interop):
    outcome = outcomes(interop_threads=1)["interop_threads"]
    assert outcome.applied and outcome.reason == "torch has 1"
    assert interop["threads"] == 1
    assert outcomes(interop_threads=1)["interop_threads"].applied  # nothing to do


def test_interop_threads_in_use_are_an_outcome(interop):
    interop["used"] = True
    outcome = outcomes(interop_threads=1)["interop_threads"]
    assert not outcome.applied and outcome.reason == "torch keeps 8: they are in use already"

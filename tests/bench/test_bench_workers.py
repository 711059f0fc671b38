"""Processes that crash, hang or leave children: none is left, and their last words are kept."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hfaccel.bench.pairs import Side, take_turn
from hfaccel.bench.workers import Crew, Limits, WatchedWorker, last_line
from hfaccel.errors import HfaccelError

CASES = """
import os, subprocess, sys, time
from hfaccel.errors import HfaccelError

def good(seconds=1.0, **more):
    found = {"calls": [seconds], "page_faults": 2, "peak_memory_mib": 5, "threads": 1, "pid": os.getpid()}
    return lambda: {"seconds": seconds, **found, **more}

def fails():
    print("some noise", file=sys.stderr)
    raise HfaccelError("no such model")

def crashes_at(number):
    left = iter(range(number - 1))
    def sample():
        if next(left, None) is None:
            print("a last word\\n", file=sys.stderr, flush=True)
            os._exit(3)
        return {"seconds": 1.0}
    return sample

def hangs(file, at_start):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(file, "w").write(f"{os.getpid()} {child.pid}")
    if at_start:
        time.sleep(600)
    return lambda: time.sleep(600)

def leaves_a_child(file):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(file, "w").write(f"{os.getpid()} {child.pid}")
    return lambda: 1.0

def killed():
    return lambda: os.kill(os.getpid(), 9)

def cannot():
    return lambda: {"seconds": 0.0, "skipped": "no int8 here"}
"""
LIMITS = Limits(60, 60)


@pytest.fixture
def side(tmp_path):
    path = tmp_path / "cases.py"
    path.write_text(CASES)
    return lambda name, **arguments: Side(name, f"{path}:{name}", arguments)


def state(pid):
    """As /proc has it: T is stopped, Z has ended, "" is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def until(condition):
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_a_worker_is_stopped_while_it_waits(side):
    with WatchedWorker(side("good"), LIMITS) as worker:
        pid = worker.process.pid
        assert until(lambda: state(pid) == "T")
        assert worker.sample()["pid"] == pid
        assert until(lambda: state(pid) == "T")
    assert state(pid) == ""


def test_the_last_line_of_a_failed_side_is_its_reason(side):
    crew = Crew((side("fails"),), LIMITS)
    assert crew.failure == "it ended with exit code 1: no such model"
    assert crew.sample() == {} and crew.processes() == []


def test_a_crash_between_samples_ends_the_side_alone(side):
    with Crew((side("good"),), LIMITS) as good, Crew((side("crashes_at", number=2),), LIMITS) as bad:
        turns = [take_turn([good, bad], number) for number in range(4)]
    assert [bool(sample) for sample, _ in turns] == [True] * 4
    assert [bool(sample) for _, sample in turns] == [True, False, False, False]
    assert bad.failure == "it ended with exit code 3: a last word"


def test_a_killed_side_names_the_signal(side):
    with Crew((side("killed"),), LIMITS) as crew:
        crew.sample()
    assert crew.failure == "it was ended by SIGKILL"


@pytest.mark.parametrize("at_start", [True, False])
def test_a_hang_is_ended_with_its_children(side, tmp_path, at_start):
    file = tmp_path / "pids"
    hanging = side("hangs", file=str(file), at_start=at_start)
    with Crew((hanging,), Limits(3 if at_start else 60, 0.2)) as crew:
        assert crew.alive is not at_start
        crew.sample()
    assert "gave no answer within" in crew.failure
    assert all(until(lambda pid=pid: state(pid) in ("", "Z")) for pid in file.read_text().split())


def test_children_do_not_survive_a_good_side(side, tmp_path):
    file = tmp_path / "pids"
    with Crew((side("leaves_a_child", file=str(file)),), LIMITS) as crew:
        assert crew.sample()["seconds"] == 1.0
    assert all(until(lambda pid=pid: state(pid) in ("", "Z")) for pid in file.read_text().split())


def test_an_interruption_ends_all_processes(side):
    pids = []
    with pytest.raises(KeyboardInterrupt), Crew((side("good"),), LIMITS) as crew:
        pids += crew.processes()
        raise KeyboardInterrupt
    assert pids and all(state(pid) == "" for pid in pids)


def test_an_interruption_at_the_start_leaves_no_process(side, monkeypatch):
    pids = []

    def interrupted(worker):
        pids.append(worker.process.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(WatchedWorker, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Crew((side("good"),), LIMITS)
    assert pids and all(state(pid) == "" for pid in pids)


def test_a_side_that_cannot_is_skipped_with_its_reason(side):
    with Crew((side("cannot"),), LIMITS) as crew:
        assert crew.sample() == {}
        assert (crew.skipped, crew.failure, crew.alive) == ("no int8 here", "", False)


def test_instances_are_sampled_together(side):
    sides = (side("good", seconds=1.0, first_token=[0.1]), side("good", seconds=0.5, first_token=[0.2]))
    with Crew(sides, LIMITS) as crew:
        found = crew.sample()
    assert found["seconds"] == pytest.approx(1 / 3)  # one and two in a second
    assert found["calls"] == [1.0, 0.5] and found["first_token"] == [0.1, 0.2]
    assert (found["peak_memory_mib"], found["page_faults"], found["threads"]) == (10, 2, 1)


def test_one_failed_instance_is_a_failed_side(side):
    crew = Crew((side("good"), side("fails")), LIMITS)
    assert crew.failure and crew.processes() == []


def test_a_worker_by_itself_raises(side):
    with pytest.raises(HfaccelError, match="it ended with exit code 1: no such model"):
        WatchedWorker(side("fails"), LIMITS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ""),
        ("a\nb\n\n", "b"),
        ("Traceback\nhfaccel.errors.HfaccelError: why\n", "why"),
        ("hfaccel: why", "why"),
        ("ValueError: why", "ValueError: why"),
        ("x" * 999, "x" * 300),
    ],
)
def test_last_words(text, said):
    assert last_line(text) == said

"""Measuring in pairs: order, failures, and the protocol between the two processes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from hfaccel.bench import Comparison, Side, compare
from hfaccel.bench.pairs import load_case, take_turns
from hfaccel.errors import HfaccelError

CASES = """
import os, subprocess, sys, time

def counts(log, name, seconds=(1.0,)):
    '''Writes its name to `log` for every sample; the answers are `seconds` in turn.'''
    answers = iter([seconds[0], *seconds, *seconds[-1:] * 100])
    def sample():
        with open(log, "a") as file:
            file.write(name + "\\n")
        return next(answers)
    return sample

def described(seconds, **more):
    return lambda: {"seconds": seconds, **more}

def noisy():
    '''Prints wherever it can: while it is built, from Python, from C, from a child.'''
    print("built")
    def sample():
        print('{"seconds": 99}')
        os.write(1, b"noise\\n")
        subprocess.run(["echo", "of a child"])
        return 0.5
    return sample

def fails_at_start():
    raise RuntimeError("no such model")

def fails_later(samples):
    left = iter(range(samples))
    return lambda: next(left) + 1.0

def leaves():
    return lambda: os._exit(9)

def announces(file):
    '''Writes its process id, so that the test can end it between two samples.'''
    with open(file, "w") as out:
        out.write(str(os.getpid()))
    return lambda: 1.0

def environment(name):
    return lambda: {"seconds": 1.0, "value": os.environ.get(name), "pid": os.getpid()}
"""


@pytest.fixture
def side(tmp_path):
    """Makes a Side of a function in a file of this test's own."""
    path = tmp_path / "the cases.py"
    path.write_text(CASES)

    def make(name, function, /, **arguments):
        return Side(name, f"{path}:{function}", arguments)

    return make


def ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_every_side_takes_one_sample_more_than_it_counts(side, tmp_path):
    log = tmp_path / "log"
    result = compare(
        side("a", "counts", log=str(log), name="a"), side("b", "counts", log=str(log), name="b"), pairs=3
    )
    assert len(result.base_samples) == len(result.fast_samples) == 3
    assert sorted(log.read_text().split()) == ["a"] * 4 + ["b"] * 4


def test_sides_swap_places_in_every_pair(side, tmp_path):
    log = tmp_path / "log"
    compare(side("a", "counts", log=str(log), name="a"), side("b", "counts", log=str(log), name="b"), pairs=4)
    order = log.read_text().split()
    pairs = [tuple(order[start : start + 2]) for start in range(0, len(order), 2)]
    assert set(pairs) == {("a", "b"), ("b", "a")}
    assert all(first != second for first, second in pairwise(pairs))


def test_a_sample_belongs_to_its_side_in_every_order(side):
    names = "abc"
    turns = take_turns([side(name, "described", seconds=1.0, name=name) for name in names], 3)
    assert [[sample["name"] for sample in turn] for turn in turns] == [list(names)] * 3


def test_the_ratio_is_the_median_of_the_pairs_ratios(side, tmp_path):
    log = str(tmp_path / "log")
    base = side("slow", "counts", log=log, name="a", seconds=[4.0, 6.0, 9.0])
    fast = side("quick", "counts", log=log, name="b", seconds=[1.0, 3.0, 3.0])
    result = compare(base, fast, pairs=3)
    assert result.ratios == [4.0, 2.0, 3.0] and result.ratio == 3.0
    assert result.seconds("slow") == 6.0 and result.seconds("quick") == 3.0
    assert result.to_dict() == {
        "base": "slow",
        "fast": "quick",
        "ratio": 3.0,
        "ratios": [4.0, 2.0, 3.0],
        "base_ms": 6000.0,
        "fast_ms": 3000.0,
    }


def test_an_even_number_of_pairs_has_a_median_too():
    samples = tuple({"seconds": seconds} for seconds in (1.0, 2.0, 3.0, 4.0))
    result = Comparison("a", "b", samples, tuple({"seconds": 1.0} for _ in range(4)))
    assert result.ratio == statistics.median([1.0, 2.0, 3.0, 4.0]) == 2.5


def test_a_case_may_answer_with_more_than_seconds(side):
    result = compare(
        side("a", "described", seconds=2.0, tokens=7), side("b", "described", seconds=1.0), pairs=1
    )
    assert result.base_samples == ({"seconds": 2.0, "tokens": 7},)
    assert result.ratio == 2.0


def test_each_side_has_its_own_process_and_environment(side):
    case = side("a", "environment", name="HFACCEL_TEST").case
    base, fast = (
        Side(value, case, {"name": "HFACCEL_TEST"}, environment={"HFACCEL_TEST": value}) for value in "ab"
    )
    result = compare(base, fast, pairs=2)
    assert {sample["value"] for sample in result.base_samples} == {"a"}
    assert {sample["value"] for sample in result.fast_samples} == {"b"}
    pids = {sample["pid"] for sample in (*result.base_samples, *result.fast_samples)}
    assert len(pids) == 2 and os.getpid() not in pids
    assert all(ended(pid) for pid in pids)


def test_a_launcher_stands_in_front(side):
    case = side("a", "environment", name="HFACCEL_TEST").case
    launcher = ("env", "HFACCEL_TEST=launched", sys.executable)
    started = Side("a", case, {"name": "HFACCEL_TEST"}, launcher)
    result = compare(started, side("b", "described", seconds=1.0), pairs=1)
    assert result.base_samples[0]["value"] == "launched"


def test_what_a_case_prints_does_not_break_the_protocol(side, capfd):
    result = compare(side("a", "noisy"), side("b", "noisy"), pairs=2)
    assert result.ratios == [1.0, 1.0]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("noise\n") == captured.err.count("of a child\n") == 6


@pytest.mark.parametrize("pairs", [0, -1])
def test_less_than_one_pair_is_refused_before_anything_starts(side, tmp_path, pairs):
    log = tmp_path / "log"
    one = side("a", "counts", log=str(log), name="a")
    with pytest.raises(ValueError, match=f"`turns >= 1` must hold, but got {pairs}"):
        compare(one, one, pairs=pairs)
    assert not log.exists()


def test_progress_is_told_of_every_pair(side):
    told = []
    compare(
        side("a", "described", seconds=1.0),
        side("b", "described", seconds=1.0),
        pairs=3,
        progress=lambda: told.append(1),
    )
    assert len(told) == 4  # with the pair that does not count


@pytest.mark.parametrize("failing", ["base", "fast"])
def test_a_side_that_fails_at_start_is_named_and_its_error_is_seen(side, capfd, failing):
    good, bad = side("the good", "described", seconds=1.0), side("the bad", "fails_at_start")
    sides = (bad, good) if failing == "base" else (good, bad)
    with pytest.raises(HfaccelError, match="the side the bad ended with exit code 1"):
        compare(*sides, pairs=1)
    assert "RuntimeError: no such model" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("function", "arguments", "code"), [("fails_later", {"samples": 2}, 1), ("leaves", {}, 9)]
)
def test_a_side_that_ends_while_it_measures_is_named(side, function, arguments, code):
    bad = side("the bad", function, **arguments)
    with pytest.raises(HfaccelError, match=f"the side the bad ended with exit code {code}"):
        compare(side("the good", "described", seconds=1.0), bad, pairs=3)


def test_a_side_that_is_killed_between_samples_is_named(side, tmp_path):
    """As the kernel does when memory runs out."""
    file = tmp_path / "pid"

    def kill():
        pid = int(file.read_text())
        os.kill(pid, 9)
        while not ended(pid):
            pass

    with pytest.raises(HfaccelError, match="the side the bad ended with exit code -9"):
        compare(
            side("the good", "described", seconds=1.0),
            side("the bad", "announces", file=str(file)),
            pairs=2,
            progress=kill,
        )


def test_no_process_is_left_after_a_failure(side):
    with pytest.raises(HfaccelError):
        compare(side("a", "described", seconds=1.0), side("b", "fails_at_start"), pairs=1)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("this kernel does not list a process's children")
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children.read_text().split()]
    assert not any(b"hfaccel.bench.worker" in command for command in commands)


@pytest.mark.parametrize("case", ["no/such/file.py:function", "function", "", "x:y:z"])
def test_a_case_that_is_no_file_states_the_form(case):
    with pytest.raises(HfaccelError, match=r"path/to/file\.py:function, but there is no file"):
        load_case(case)


def test_a_function_that_the_file_lacks_is_named(side):
    with pytest.raises(HfaccelError, match="no_such_function"):
        load_case(side("a", "no_such_function").case)


def test_a_case_is_called_with_its_arguments(side):
    assert load_case(side("a", "described").case)(seconds=3.0)() == {"seconds": 3.0}


def test_a_worker_ends_when_its_input_ends(side):
    command = side("a", "described", seconds=1.0).command()
    done = subprocess.run(command, input="sample\nsample\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.splitlines() == ['{"ready": true}', '{"seconds": 1.0}', '{"seconds": 1.0}']

"""A few seconds of the soak: benchmarks/soak.py --minutes 20 is the same for longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import soak

SCRIPT = Path(soak.__file__)


def test_a_short_soak_loses_nothing():
    command = [sys.executable, SCRIPT, "--minutes", "0.05", "--clients", "8", "--texts", "8", "--no-save"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'right'" in done.stdout


# The soak itself must see what it looks for


@pytest.fixture
def state():
    return soak.Soak(0, ["a", "b"], np.eye(2, dtype=np.float32), tolerance=0.1, ends=0.0)


def bad(state, **counts):
    rows = soak.verdict(state, {"accepted": 1, "answered": 1, "cancelled": 0, **counts})
    return [row["name"] for row in rows if row["measured"] > row["bar"]]


@pytest.mark.parametrize("what", ["swapped", "wrong", "lost: TimeoutError", "status 500 for a good request"])
def test_a_bad_answer_is_seen(state, what):
    state.seen.update({"right": 5, "left": 3})
    assert bad(state) == []
    state.seen[what] += 1
    assert bad(state) == ["lost, swapped or wrong answers"]


def test_a_forgotten_request_and_an_idle_soak_are_seen(state):
    assert bad(state, accepted=2) == ["requests accepted and forgotten", "no right answer at all"]


@pytest.mark.parametrize(
    ("embedding", "seen"), [([1, 0], "right"), ([0, 1], "swapped"), ([0.7, 0.6], "wrong")]
)
def test_answers_are_told_apart(state, embedding, seen):
    soak.judge(state, 0, embedding)
    assert dict(state.seen) == {seen: 1}


def test_growth_is_from_the_second_quarter_to_the_last():
    assert soak.growth([9, 9, 10, 10, 10, 10, 11, 11]) == pytest.approx(1.1)

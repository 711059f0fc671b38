"""What others add in a file of their own: a command and a knob. Backends are in tests/backends, families in
tests/engine/test_registry.py, replacements in tests/engine/test_model_plan.py."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from hfaccel import commands
from hfaccel.host import read_host
from hfaccel.plan import KNOBS, Goal, Knob, make_plan
from hfaccel.plan.knobs import register

VERB = """
def run(arguments):
    print("hello", *arguments)
    return 7
"""
METADATA = "Metadata-Version: 2.1\nName: greetings\nVersion: 1\n"


@pytest.fixture
def installed(tmp_path):
    """A folder with a package that has a verb."""
    (tmp_path / "greetings.py").write_text(VERB)
    information = tmp_path / "greetings-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(METADATA)
    (information / "entry_points.txt").write_text(f"[{commands.GROUP}]\ngreet = greetings\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def hfaccel(environment, *arguments):
    program = "import sys; from hfaccel.commands import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_command_of_another_package(installed):
    done = hfaccel(installed, "greet", "--all")
    assert (done.stdout, done.returncode) == ("hello --all\n", 7)
    assert "greet    of the package greetings" in hfaccel(installed, "--help").stdout
    assert "greet" in hfaccel(installed, "unknown").stderr


def test_own_commands_come_first(installed, monkeypatch):
    monkeypatch.setattr(commands, "_others", lambda: [EntryPoint("info", "greetings", commands.GROUP)])
    with pytest.raises(SystemExit):
        commands.main(["info", "--help"])


def test_a_knob_is_one_row():
    knob = Knob(
        "greeting",
        "a word; none: silence",
        ("GREETING",),
        lambda facts, goal: ("hello", "it is polite"),
        lambda value, facts: str(value),
        lambda value, values: {"GREETING": value},
    )
    register(knob)
    try:
        facts = read_host()
        assert make_plan(facts, Goal("launch"))["greeting"].reason == "it is polite"
        assert make_plan(facts, Goal("launch", overrides={"greeting": "hi"}))["greeting"].value == "hi"
        kept = make_plan(facts, Goal("launch", environment={"GREETING": "ho"}))["greeting"]
        assert (kept.value, kept.source) == (None, "environment")
    finally:
        KNOBS.remove(knob)

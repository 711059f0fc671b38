"""The commands of docs/bench.md are understood, and plan what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hfaccel.bench.repeated import REPEATED
from hfaccel.bench.subjects import RANDOM
from hfaccel.commands import bench, bench_study, main
from hfaccel.commands.bench_options import NAMES, NUMBERS, parse

PAGE = (Path(__file__).parents[2] / "docs/bench.md").read_text()
COMMANDS = re.findall(r"^hfaccel bench (.*)$", PAGE, re.MULTILINE)
STUDIES = [command for command in COMMANDS if not command.startswith(("compare", "report"))]
FOUND = {"seconds": 0.0, "kind": "encoder", "longest": 512, "weights_mib": 90.0}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with the files of the page; models are described without being loaded."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.py", "questions.txt"):
        Path(name).write_text("pass\n")
    Path("my-model").mkdir()
    monkeypatch.setattr(
        bench_study,
        "describe",
        lambda ground, backends, timeout: {**FOUND, "backends": dict.fromkeys(backends, "")},
    )


@pytest.mark.parametrize("command", STUDIES)
def test_studies_of_the_page_can_be_planned(command, capsys):
    assert main(["bench", "--dry-run", *shlex.split(command)]) == 0
    assert "settings are still to be measured" in capsys.readouterr().out
    assert not list(Path.cwd().glob("*.json"))


def test_the_page_has_a_command_for_every_way():
    assert len(STUDIES) >= 8 and len(COMMANDS) > len(STUDIES)
    kinds = {bench.divided(shlex.split(command))[0] for command in COMMANDS}
    assert kinds == {"study", "compare", "report"}
    assert parse(shlex.split(STUDIES[3])).script == ("train.py", "--epochs", "1")


def test_the_page_names_every_axis_subject_and_repeated_study():
    for name in (*(f"--{axis.replace('_', '-')}" for axis in (*NUMBERS, *NAMES)), *RANDOM, *REPEATED):
        assert f"{name}`" in PAGE or f"`{name}" in PAGE or f" {name} " in PAGE, name

"""`hfaccel tune` as a user runs it: on a script and on a tiny model, stopped, continued, and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfaccel.bench import results
from hfaccel.bench.setting import Setting
from hfaccel.commands import main
from hfaccel.host import read_host
from hfaccel.plan.profile import check_host, read_profile
from hfaccel.tune.reporting import FILE

pytestmark = pytest.mark.usefixtures("calm")

PROGRAM = str(Path(sys.executable).with_name("hfaccel"))
FEW = ["--fix", "wait_policy=none", "--fix", "huge_pages=off", "--fix", "share=1"]  # allocators are left
# Runs of other trials than the first take a minute until the file "fast" says otherwise.
AFTER_THE_FIRST = f"""
import os, time
first = "script0." in os.environ["{FILE}"]
time.sleep(0.1 if first or open("fast").read() == "yes" else 60)
"""
BY_PROFILE = """
import hfaccel, random
maps = open("/proc/self/maps").read()
hfaccel.tune.report((1 if "mimalloc" not in maps else 2) * (1 + random.random() / 1000))
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(code, name="script.py"):
        Path(name).write_text(code)
        return name

    return write


def tuned(*arguments):
    return main(["tune", *FEW, "--rounds", "5", *arguments])


def test_a_script_gets_a_profile_with_its_evidence(script, capsys):
    assert tuned("--trials", "4", "--save", "all.json", "--", script(BY_PROFILE)) == 0
    said = capsys.readouterr()
    assert "best: " in said.out and "profile: hfaccel-profile.toml" in said.out
    assert "trial 1 of 4: " in said.err
    profile = read_profile("hfaccel-profile.toml")
    check_host(profile, read_host())
    assert profile.knobs["allocator"] != "mimalloc" and profile.model == {}
    assert profile.evidence["gain"] == pytest.approx(2, rel=0.01)
    assert profile.evidence["subject"] == "script.py" and profile.evidence["pairs"] >= 5
    _check_result(results.read("all.json"))
    done = subprocess.run(
        [PROGRAM, "run", "--profile", "hfaccel-profile.toml", "-c", "print(open('/proc/self/maps').read())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "mimalloc" not in done.stdout


def _check_result(document):
    tuning = document["tuning"]
    assert document["cells"] == [] and document["subject"] == "script.py"
    assert tuning["default"] == 0 and tuning["best"] not in (0, None)
    assert Setting.from_dict(tuning["trials"][tuning["best"]]["setting"]).allocator != "mimalloc"
    assert sum(tuning["importances"].values()) == pytest.approx(1, abs=0.01)
    assert tuning["importances"]["allocator"] > 0.9
    assert {trial["state"] for trial in tuning["trials"]} <= {"complete", "pruned"}


def test_where_nothing_is_better_no_knob_is_set(script, capsys):
    code = "import hfaccel, random; hfaccel.tune.report(1 + random.random() / 1000)"
    assert tuned("--trials", "2", "--json", "--", script(code)) == 0
    assert json.loads(capsys.readouterr().out)["tuning"]["best"] == 0
    profile = read_profile("hfaccel-profile.toml")
    assert profile.knobs == {} and "gain" not in profile.evidence
    assert "found nothing better" in Path("hfaccel-profile.toml").read_text()


def test_a_script_that_always_fails_is_one_line(script, capsys):
    assert tuned("--trials", "3", "--", script("raise SystemExit('no weights')")) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "hfaccel: some trial must succeed, but all 3 failed: it ended with exit code 1: no weights"
    assert not Path("hfaccel-profile.toml").exists()


def test_ctrl_c_keeps_all_and_the_same_command_goes_on(script, tmp_path):
    """In a process of its own, as a terminal does it: SIGINT to the group."""
    slow = script(AFTER_THE_FIRST)
    Path("fast").write_text("no")
    command = [PROGRAM, "tune", *FEW, "--trials", "2", "--rounds", "5", "--", slow]
    with Path("said").open("w") as said:
        process = subprocess.Popen(command, stderr=said, stdout=subprocess.DEVNULL, process_group=0)
        _wait_for("trial 1 of 2", Path("said"))
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    assert "stopped; the same command goes on from here" in Path("said").read_text()
    Path("fast").write_text("yes")
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "trial 1 of 2" not in again.stderr and "trial 2 of 2" in again.stderr


def _wait_for(text, path):
    for _ in range(600):
        if text in path.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(path.read_text())


def test_a_model_is_tuned_in_fresh_processes(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    axes = ["--fix", "allocator=default", "--backends", "torch", "--accuracy", "bf16"]
    measuring = ["--trials", "2", "--seconds", "0.01", "--samples", "2", "--length", "8"]
    assert tuned(*axes, *measuring, "random:tiny") == 0
    said = capsys.readouterr().out
    assert "latency, p50: 2 of 2 trials" in said and "not verified" not in said
    profile = read_profile("hfaccel-profile.toml")
    assert profile.model["backend"] == "torch" and profile.evidence["work"] == "(1,8)"


@pytest.mark.parametrize(
    ("arguments", "rule", "got"),
    [
        ([], "a model or `-- script.py` must be given", "neither"),
        (["random:tiny", "--", "script.py"], "a model or `-- script.py` must be given", "both"),
        (["--", "nothing.py"], "a script must exist", "'nothing.py'"),
        (["--accuracy", "int8", "--", "script.py"], "a script chooses its own model", "--accuracy"),
        (["--maximize", "random:tiny"], "--maximize is for a script", "a model was given"),
        (["--optimize", "random:tiny"], "--optimize is for a script", "a model was given"),
        (["--output", "no/p.toml", "--", "script.py"], "a file must be in a folder that exists", "no/p.toml"),
        (["--save", "no/r.json", "--", "script.py"], "a file must be in a folder that exists", "no/r.json"),
        (["--fix", "allocator", "--", "script.py"], "--fix must be AXIS=VALUE", "'allocator'"),
        (["--fix", "allocator=best", "--", "script.py"], "allocator must be one of", "'best'"),
        (["--fix", "engine=x", "--", "script.py"], "an axis must be one of instances", "engine"),
        (["--trials", "0", "--", "script.py"], "a number from 1 on is expected", "'0'"),
        (["--rounds", "3", "--", "script.py"], "a number from 5 on is expected", "'3'"),
        (["--timeout", "-1", "--", "script.py"], "a number above 0 is expected", "'-1'"),
        (["--percentile", "100", "random:tiny"], "`0 < percentile < 100` must hold", "100"),
        (["--objective", "latency", "--limit", "5", "random:tiny"], "a limit is for", "latency"),
        (["--storage", "no/where.db", "--", "script.py"], "a storage must be in a folder", "no/where.db"),
        (["no/model"], "a model must be a folder that save_pretrained wrote", "no/model"),
    ],
)
def test_bad_input_is_one_line_with_rule_and_value(script, capsys, arguments, rule, got):
    script("pass")
    assert main(["tune", *arguments]) == 2
    said = capsys.readouterr().err
    assert rule in said and got in said and said.count("\n") == 1


def test_what_would_be_varied_is_shown_without_measuring(script, capsys):
    assert main(["tune", "--dry-run", "--", script("raise SystemExit(1)")]) == 0
    said = capsys.readouterr().out
    assert "settings for script.py" in said and "wait_policy" in said and "the default: " in said
    assert [path.name for path in Path().iterdir()] == ["script.py"]


def test_tune_is_found_without_optuna_or_torch():
    code = (
        "import sys, hfaccel; hfaccel.tune.report(1); print({'optuna', 'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

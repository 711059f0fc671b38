"""Scripts as what is tuned: what they report, how they fail, and that nothing of them is left."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from simulated import host

from hfaccel import tune
from hfaccel.bench.setting import Setting
from hfaccel.errors import UsageError
from hfaccel.tune.objective import Objective
from hfaccel.tune.reporting import FILE, read_reports
from hfaccel.tune.scripts import ScriptMachine
from hfaccel.tune.space import Asked, make_space
from hfaccel.tune.trials import TrialFailed

ONE = Setting(threads=1)
REPORT = Objective("report")


@pytest.fixture
def machine(tmp_path):
    def make(code, objective=REPORT, limit=60.0):
        script = tmp_path / "script.py"
        script.write_text(code)
        return ScriptMachine((str(script), "an argument"), objective, tmp_path, limit)

    return make


def sampled(machine, setting=ONE):
    with machine.open(setting) as runner:
        return runner.sample()


def test_what_a_script_reports_counts(machine):
    code = "import sys, hfaccel.tune; print('noise'); hfaccel.tune.report(len(sys.argv[1]))"
    assert sampled(machine(code))["seconds"] == len("an argument")


def test_the_last_report_of_a_process_counts(machine):
    assert sampled(machine("import hfaccel\nfor n in (3, 1, 2): hfaccel.tune.report(n)"))["seconds"] == 2


def test_without_a_report_the_run_time_counts(machine):
    assert 0.3 < sampled(machine("import time; time.sleep(0.3)"))["seconds"] < 30


def test_a_script_runs_with_the_knobs_of_its_trial(machine):
    code = "import os, hfaccel; hfaccel.tune.report(3 if os.environ['OMP_WAIT_POLICY'] == 'active' else 4)"
    assert sampled(machine(code), Setting(threads=1, wait_policy="active"))["seconds"] == 3
    assert sampled(machine(code), Setting(threads=1, wait_policy="passive"))["seconds"] == 4


def test_the_models_of_a_script_can_be_optimized(machine):
    counted = machine("import os, hfaccel; hfaccel.tune.report(int(os.environ['HFACCEL_AUTO']) + 4)")
    counted.optimize = True
    assert sampled(counted)["seconds"] == 5


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two instances need two cores")
def test_instances_do_runs_together(machine):
    counted = machine("import time; time.sleep(0.4)", Objective("throughput"))
    sample = sampled(counted, Setting(threads=1, instances=2))
    assert sample["seconds"] == pytest.approx(sample["calls"][0] / 2)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('no model here')", "it ended with exit code 1: ValueError: no model here"),
        ("import sys; sys.exit(7)", "it ended with exit code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it was ended by signal 11"),
        ("import hfaccel; hfaccel.tune.report(-1)", "UsageError: a reported value must be a number above 0"),
        ("def", "SyntaxError"),
    ],
)
def test_a_script_that_fails_is_a_failed_trial_with_its_reason(machine, code, reason):
    with pytest.raises(TrialFailed) as caught:
        sampled(machine(code))
    assert reason in str(caught.value)


def test_a_script_that_hangs_is_ended_with_its_children(machine, tmp_path):
    mark = tmp_path / "child"
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(mark)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )
    with pytest.raises(TrialFailed, match="it ran longer than 3 seconds and was ended"):
        sampled(machine(code, limit=3.0))
    assert ended(int(mark.read_text()))


def ended(process):
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_what_is_maximized_must_be_reported(machine):
    with pytest.raises(TrialFailed, match=r"hfaccel\.tune\.report was not called"):
        sampled(machine("pass", Objective("report", maximize=True)))


def test_reports_in_some_runs_only_do_not_compare(machine, tmp_path):
    mark = tmp_path / "mark"
    code = f"import os, hfaccel\nif not os.path.exists({str(mark)!r}): hfaccel.tune.report(1)"
    script = machine(code)
    assert sampled(script)["seconds"] == 1
    mark.touch()
    with pytest.raises(TrialFailed, match="in every run or in none, but it did not report"):
        sampled(script)


def test_the_default_of_a_script_is_that_of_the_launcher():
    assert make_space(host(4), Asked(backends=(), work="script")).default.allocator == "mimalloc"


# report()


def test_outside_of_tuning_a_report_does_nothing(monkeypatch):
    monkeypatch.delenv(FILE, raising=False)
    assert tune.report(1.5) is None


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "3", None, True, [1], b"1", 10**400])
def test_a_report_is_a_number_above_0(value):
    with pytest.raises(UsageError, match="a reported value must be a number above 0, but got"):
        tune.report(value)


def test_reports_of_many_kinds_of_numbers_are_kept(monkeypatch, tmp_path):
    import numpy as np
    import torch

    monkeypatch.setenv(FILE, str(tmp_path / "values"))
    for value in (1, 2.5, np.float32(3), torch.tensor(4.0)):
        tune.report(value)
        assert read_reports(tmp_path / "values") == (float(value),)
    assert read_reports(tmp_path / "nothing") == ()

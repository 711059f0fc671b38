"""The command `hfaccel`: verbs, exit codes, and one line for what is expected to fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hfaccel import commands
from hfaccel.commands import VERBS, guarded, main
from hfaccel.errors import HfaccelError, ModelError, UsageError
from hfaccel.host import read_host
from hfaccel.plan import cpu_budget

PROGRAM = str(Path(sys.executable).with_name("hfaccel"))
VARIABLES = ("PYTHON", "OMP_", "LD_PRELOAD", "MALLOC_", "GLIBC_", "COLUMNS")


def hfaccel(*arguments, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    return subprocess.run(
        [PROGRAM, *arguments], capture_output=True, text=True, timeout=120, env={**kept, **variables}
    )


@pytest.fixture
def host(tmp_path):
    """A captured tree: four CPUs on two cores, a quota of 1.5 CPUs, no transparent huge pages."""
    files = {
        "sys/devices/system/cpu/online": "0-3",
        **{
            f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 2},{cpu % 2 + 2}"
            for cpu in range(4)
        },
        "sys/fs/cgroup/cpu.max": "150000 100000",
        "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]",
        "proc/self/cgroup": "0::/",
        "proc/meminfo": "MemTotal: 2097152 kB",
        "proc/cpuinfo": "vendor_id : GenuineIntel\nmodel name : A [Test] Processor\nflags : avx2 amx_int8",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(tmp_path)


def test_without_a_verb_the_verbs_are_listed_and_it_is_a_failure():
    done = hfaccel()
    assert done.returncode == 2
    assert all(verb in done.stdout for verb in VERBS) and done.stderr == ""


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_the_verbs(option):
    done = hfaccel(option)
    assert done.returncode == 0 and done.stderr == ""
    assert all(f"  {verb}" in done.stdout and meaning in done.stdout for verb, meaning in VERBS.items())


def test_the_version_is_told():
    done = hfaccel("--version")
    assert (done.returncode, done.stdout) == (0, f"hfaccel {version('hfaccel')}\n")
    assert hfaccel("run", "--version").stdout == done.stdout


@pytest.mark.parametrize("verb", ["nonsense", "", "info.run", "__init__", "--version-of-nothing"])
def test_an_unknown_verb_is_one_line_with_the_known_ones(verb):
    done = hfaccel(verb)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"hfaccel: the verb must be one of {', '.join(VERBS)}, but got {verb!r}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb):
    done = hfaccel(verb, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "usage:" in done.stdout and "--json" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_an_unknown_option(verb):
    done = hfaccel(verb, "--nonsense")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr


def test_every_file_of_the_package_is_a_verb():
    files = {path.stem for path in Path(commands.__file__).parent.glob("*.py")}
    parts = {"run_options", "tune_options"} | {
        file for file in files if file.startswith("bench_")
    }  # of run, tune and bench
    assert files - {"__init__"} - parts == set(VERBS)


def test_main_takes_its_arguments_from_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hfaccel", "--help"])
    assert main() == 0
    assert "usage: hfaccel VERB" in capsys.readouterr().out


def test_info_describes_this_machine():
    done = hfaccel("info")
    assert done.returncode == 0 and done.stderr == ""
    for text in ("processor", "CPU quota", "plan of hfaccel-run", "threads", "allocator"):
        assert text in done.stdout


def test_info_as_json_has_facts_and_plan():
    done = hfaccel("info", "--json", OMP_NUM_THREADS="3")
    described = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == ""
    assert described["facts"]["limits"]["affinity"] == sorted(os.sched_getaffinity(0))
    threads = next(choice for choice in described["plan"] if choice["knob"] == "threads")
    assert threads["source"] == "environment" and "OMP_NUM_THREADS=3" in threads["reason"]


def test_info_of_a_captured_tree_is_about_that_host(host):
    """The environment of this process says nothing about that host."""
    done = hfaccel("info", "--json", "--root", host, OMP_NUM_THREADS="3")
    described = json.loads(done.stdout)
    plan = {choice["knob"]: choice for choice in described["plan"]}
    assert described["facts"]["limits"]["affinity"] == [0, 1, 2, 3]
    assert described["facts"]["limits"]["cpu_quota"] == 1.5
    assert plan["threads"]["value"] == 1 and "quota of 1.5" in plan["threads"]["reason"]
    assert plan["huge_pages"]["value"] == "off"
    assert plan["omp_wait_policy"]["value"] == "passive"
    assert plan["allocator"]["value"] is None


def test_info_of_a_captured_tree_as_tables(host):
    text = hfaccel("info", "--root", host).stdout
    assert "A [Test] Processor" in text and "avx2 amx_int8" in text and "1.5 CPUs" in text
    assert "2.0 GiB" in text and "never" in text


def test_info_of_an_empty_tree_does_not_fail(tmp_path):
    done = hfaccel("info", "--root", str(tmp_path))
    assert done.returncode == 0 and "unknown" in done.stdout


@pytest.mark.parametrize("columns", ["20", "80", "400", "x"])
def test_tables_fit_the_terminal(columns):
    done = hfaccel("info", COLUMNS=columns)
    assert done.returncode == 0
    limit = max(80, min(int(columns), 160)) if columns.isdecimal() else 160
    assert max(map(len, done.stdout.splitlines())) <= limit


def test_doctor_says_what_it_found_and_its_exit_code_agrees():
    done = hfaccel("doctor", "--json")
    diagnosis = json.loads(done.stdout)
    statuses = [finding["status"] for finding in diagnosis["findings"]]
    expected = 2 if "error" in statuses else 1 if "warning" in statuses else 0
    assert done.returncode == diagnosis["exit_code"] == expected
    assert all(bool(f["advice"]) == (f["status"] != "ok") for f in diagnosis["findings"])


@pytest.mark.skipif(cpu_budget(read_host()).threads < 2, reason="one thread is all that this machine allows")
def test_doctor_warns_of_wrong_threads_and_shows_the_advice():
    done = hfaccel("doctor", OMP_NUM_THREADS="1")
    assert done.returncode >= 1
    assert "warning" in done.stdout and "torch starts 1" in done.stdout
    assert "threads: unset OMP_NUM_THREADS" in done.stdout


@pytest.mark.parametrize("arguments", ["info", "info --json", "--help", "run --dry-run -c pass"])
def test_a_reader_that_goes_away_is_no_failure(arguments):
    """As in `hfaccel info | head -1`: no traceback, no exit code of 120. What is short stays in Python's
    buffer until the end, so it fails later than what is long."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [PROGRAM, *arguments.split()]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=kept, timeout=120)
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 0


@pytest.mark.parametrize("error", [HfaccelError, UsageError, ModelError])
def test_an_expected_failure_is_one_line_and_its_exit_code(capsys, error):
    def fails():
        raise error("`a >= 1` must hold, but got 0; use 1")

    assert guarded(fails) == error.exit_code
    assert capsys.readouterr().err == "hfaccel: `a >= 1` must hold, but got 0; use 1\n"


def test_an_unexpected_failure_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)


def test_a_command_that_works_gives_its_own_code():
    assert guarded(lambda: 5) == 5

"""hfaccel info: this machine, another host as a folder or a captured file, and the capture of this one."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hfaccel

PROGRAM = str(Path(sys.executable).with_name("hfaccel"))
VARIABLES = ("PYTHON", "OMP_", "LD_PRELOAD", "MALLOC_", "GLIBC_", "COLUMNS", "HFACCEL_")
LIBC = ctypes.CDLL(None)
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
HOSTS = Path(__file__).parent.parent / "hosts"


def info(*arguments, text=True, preexec_fn=None, cwd=None, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    command = [PROGRAM, "info", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=text,
        timeout=120,
        env={**kept, **variables},
        preexec_fn=preexec_fn,
        cwd=cwd,
    )


def described(*arguments, **keywords):
    done = info("--json", *arguments, **keywords)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return json.loads(done.stdout)


def one_line(done) -> str:
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.startswith("hfaccel: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.fixture
def captured(tmp_path):
    """A host as a captured file: four CPUs on two cores, of which the mask has three."""
    path = tmp_path / "host.txt"
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files = {
        "/sys/devices/system/cpu/online": "0-3",
        **{siblings.format(cpu): f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}" for cpu in range(4)},
        "/proc/self/status": "Cpus_allowed_list:\t0-2",
        "/proc/meminfo": "MemTotal: 2097152 kB",
        "/proc/cpuinfo": "vendor_id : GenuineIntel\nmodel name : A [Test] Processor\nflags : avx2",
        "/usr/lib/libjemalloc.so.2": "",
    }
    path.write_text("".join(f"==> {name} <==\n{text}\n\n" for name, text in files.items()))
    return str(path)


# Another host


def test_a_captured_file_is_a_host(captured):
    host = described("--root", captured)
    plan = {choice["knob"]: choice["value"] for choice in host["plan"]}
    assert host["facts"]["limits"]["affinity"] == [0, 1, 2]
    assert host["facts"]["processor"]["model_name"] == "A [Test] Processor"
    assert plan["threads"] == 2 and plan["affinity"] == [0, 2]
    assert plan["allocator"] == {"kind": "jemalloc", "path": "/usr/lib/libjemalloc.so.2"}


def test_a_captured_file_as_tables(captured):
    text = info("--root", captured).stdout
    for part in ("A [Test] Processor", "0-2", "jemalloc (/usr/lib/libjemalloc.so.2)", "plan of hfaccel-run"):
        assert part in text


def test_a_folder_and_a_file_of_the_same_host_agree(captured, tmp_path):
    folder = tmp_path / "host"
    for part in Path(captured).read_text().split("==> /")[1:]:
        name, _, text = part.partition(" <==\n")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.strip() + "\n")
    assert described("--root", str(folder)) == described("--root", captured)
    assert described("--root", f"{folder}/") == described("--root", captured)


def test_the_environment_here_says_nothing_about_another_host(captured):
    host = described("--root", captured, OMP_NUM_THREADS="7", LD_PRELOAD="")
    assert {choice["source"] for choice in host["plan"]} == {"rule"}


@pytest.mark.parametrize("host", sorted(path.name for path in HOSTS.glob("*.txt")))
def test_every_captured_host_can_be_shown(host):
    text = str(hfaccel.info(HOSTS / host))
    assert "plan of hfaccel-run" in text and "affinity mask" in text


@pytest.mark.parametrize("root", ["no-such-folder", "", "a file/below"])
def test_a_root_that_is_not_there_is_one_line(root, tmp_path):
    (tmp_path / "a file").touch()
    text = one_line(info(f"--root={root}", cwd=tmp_path))
    assert repr(root) in text and "a folder or a captured file" in text


def test_a_file_that_is_no_capture_is_one_line(tmp_path):
    """Its tables would all say `unknown`, and look like an answer."""
    path = tmp_path / "notes.txt"
    path.write_text("Some notes\nabout a host\n")
    assert repr(str(path)) in one_line(info("--root", str(path)))


def obey_permissions() -> None:
    """Between fork and exec: root gives up the capabilities by which it may read everything."""
    if os.geteuid() == 0:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_root_that_may_not_be_read_is_one_line(tmp_path, kind):
    root = tmp_path / "root"
    root.touch() if kind == "file" else root.mkdir()
    root.chmod(0)
    text = one_line(info("--root", str(root), preexec_fn=obey_permissions, cwd="/"))
    assert "cannot be read" in text


# The capture of this one


def without_what_changes(facts):
    for name in ("steal", "throttled", "parent_affinity"):
        facts["limits"].pop(name)
    facts["mapped"] = sorted(facts["mapped"])  # in order of address, which is random
    return facts


def test_a_capture_has_the_facts_of_this_machine(tmp_path, monkeypatch):
    # transformers' pipelines set this variable in any test before; a captured host has no environment
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    path = tmp_path / "host.txt"
    done = info("--capture", str(path))
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"{path}: ") and f"hfaccel info --root {path}" in done.stdout
    here, there = described(), described("--root", str(path))
    assert without_what_changes(there["facts"]) == without_what_changes(here["facts"])
    assert there["plan"] == here["plan"]


def test_a_capture_replaces_what_was_in_the_file(tmp_path):
    path = tmp_path / "host.txt"
    path.write_text("x" * 1_000_000)
    assert info("--capture", str(path)).returncode == 0
    assert path.read_text().startswith("==> /") and "xxx" not in path.read_text()


def test_a_capture_may_be_printed():
    done = info("--capture", "-")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("==> /") and "\n==> /sys/devices/system/cpu/online <==\n" in done.stdout


def test_a_printed_capture_reads_as_a_written_one(tmp_path):
    path = tmp_path / "host.txt"
    path.write_text(info("--capture", "-").stdout)
    assert without_what_changes(described("--root", str(path))["facts"]) == without_what_changes(
        described()["facts"]
    )


def test_a_capture_holds_nothing_that_is_secret():
    """Facts are made of few variables; the others, and what programs are called with, stay here."""
    text = info("--capture", "-", API_TOKEN="hf_0123456789", HF_TOKEN="hf_9876543210").stdout
    assert "hf_0123456789" not in text and "hf_9876543210" not in text
    assert "environ" not in text and "cmdline" not in text


@pytest.mark.parametrize("target", [".", "", "no/such/folder/file", "/proc/none", "/dev/full"])
def test_a_capture_that_cannot_be_written_is_one_line(target, tmp_path):
    text = one_line(info(f"--capture={target}", cwd=tmp_path))
    assert "--capture must name a file that can be written" in text and repr(target) in text


def test_a_capture_into_a_folder_that_may_not_be_written_is_one_line(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    text = one_line(info("--capture", str(folder / "file"), preexec_fn=obey_permissions, cwd="/"))
    assert "Permission denied" in text


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--capture", "host.txt"], ["--capture", "-"]])
def test_paths_that_are_no_text_are_shown_somehow(arguments, tmp_path):
    """A folder may be called anything; the models are kept in this one."""
    done = info(
        *arguments, text=False, cwd=tmp_path, HF_HOME=b"/tmp/gr\xf6\xdfe", PYTHONIOENCODING="utf-8:strict"
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()


def test_a_capture_of_another_host_is_a_contradiction(captured, tmp_path):
    """It would be a capture of this machine under the other's name."""
    text = one_line(info("--root", captured, "--capture", str(tmp_path / "copy")))
    assert "--capture" in text and "--root" in text

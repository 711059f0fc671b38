"""The trial of a library in LD_PRELOAD, with a real loader."""

from __future__ import annotations

import os
import struct
import subprocess
import sys

import pytest

from hfaccel.apply import preload
from hfaccel.apply.preload import preload_trial
from hfaccel.host import read_host

pytestmark = pytest.mark.skipif(read_host().libc != "glibc", reason="the libc is not glibc")
MACHINES = {"x86_64": 62, "aarch64": 183}


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_every_allocator_found_here_can_be_preloaded():
    assert [preload_trial(library.path) for library in read_host().allocators] == [
        "" for _ in read_host().allocators
    ]


def test_a_library_of_the_system_can_be_preloaded():
    assert preload_trial("libm.so.6") == ""


@pytest.mark.parametrize("content", [None, b"", b"no library", b"\x7fELF"])
def test_the_loaders_complaint_is_the_answer(tmp_path, content):
    path = tmp_path / "lib.so"
    if content is not None:
        path.write_bytes(content)
    problem = preload_trial(str(path))
    assert problem.startswith("is refused by the loader: ") and "lib.so" in problem
    assert "\n" not in problem


@pytest.mark.skipif(os.uname().machine not in MACHINES, reason="not an x86_64 or aarch64 machine")
def test_a_right_header_is_not_enough(tmp_path):
    path = tmp_path / "lib.so"
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, MACHINES[os.uname().machine])
    path.write_bytes(header + bytes(2000))
    assert preload_trial(str(path)) != ""


def test_a_program_that_fails_is_a_problem_with_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(preload, "TRIAL", script(tmp_path / "trial", "exit 3"))
    assert preload_trial("libm.so.6").endswith("end with code 3")


def test_a_program_that_crashes_is_a_problem_with_its_signal(tmp_path, monkeypatch):
    monkeypatch.setattr(preload, "TRIAL", script(tmp_path / "trial", "kill -SEGV $$"))
    assert preload_trial("libm.so.6").endswith("end with code -11")


@pytest.mark.parametrize("descriptor", [1, 2])
def test_whatever_is_printed_is_a_problem(tmp_path, monkeypatch, descriptor):
    text = f"printf 'first line\\nsecond\\n\\377' >&{descriptor}"
    monkeypatch.setattr(preload, "TRIAL", script(tmp_path / "trial", text))
    assert preload_trial("libm.so.6") == "is refused by the loader: first line"


def test_much_output_does_not_block_the_trial(tmp_path, monkeypatch):
    text = "head -c 1000000 /dev/zero | tr '\\0' x; echo"  # a pipe holds 64 KiB
    monkeypatch.setattr(preload, "TRIAL", script(tmp_path / "trial", text))
    assert preload_trial("libm.so.6").startswith("is refused by the loader: xxx")


def test_the_program_of_the_trial_gets_the_library_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("UNRELATED", "1")
    monkeypatch.setattr(preload, "TRIAL", script(tmp_path / "trial", f"env > {tmp_path}/seen"))
    assert preload_trial("libm.so.6") == ""
    seen = (tmp_path / "seen").read_text().splitlines()
    assert "LD_PRELOAD=libm.so.6" in seen and "UNRELATED=1" not in seen


def test_without_a_program_to_try_it_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(preload, "TRIAL", "/no/such/program")
    assert preload_trial("/no/such/library.so") == ""


def test_a_trial_that_cannot_start_is_a_problem(tmp_path, monkeypatch):
    program = tmp_path / "trial"
    program.write_bytes(b"not a program")
    program.chmod(0o755)
    monkeypatch.setattr(preload, "TRIAL", str(program))
    assert preload_trial("libm.so.6").startswith("could not be tried (")


def test_trials_leave_no_descriptors_and_no_children(tmp_path, monkeypatch):
    before = open_descriptors()
    for _ in range(5):
        preload_trial("libm.so.6")
        preload_trial("/no/such/library.so")
    monkeypatch.setattr(preload, "TRIAL", str(tmp_path))  # a folder: posix_spawn fails
    preload_trial("libm.so.6")
    assert open_descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_nothing_of_the_trial_reaches_the_terminal(tmp_path):
    code = f"from hfaccel.apply.preload import preload_trial; preload_trial({str(tmp_path / 'none.so')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == done.stderr == b""

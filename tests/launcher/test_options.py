"""What hfaccel-run says: plans that start nothing, and refusals of one line each."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from launching import RUN, environment, launched, plain, refused

MACHINES = {"x86_64": 62, "aarch64": 183}
LIBC = ctypes.CDLL(None)
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def elf_header(bits: int = 64, machine: int | None = None) -> bytes:
    """The first 20 bytes of a shared library: magic, class, byte order, version, type, machine."""
    code = MACHINES.get(os.uname().machine, 0) if machine is None else machine
    return b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9) + struct.pack("<HH", 3, code)


@pytest.fixture
def script(tmp_path):
    """A program that leaves a trace when it is started."""
    path = tmp_path / "script.py"
    path.write_text(f"import sys; open({str(tmp_path / 'started')!r}, 'w'); print(sys.argv[1:])")
    return str(path)


def started(script: str) -> bool:
    return Path(script).with_name("started").exists()


def test_dry_run_starts_nothing_and_prints_the_plan(script):
    done = launched("--dry-run", script, "an argument")
    text = done.stdout.decode()
    assert done.returncode == 0 and done.stderr == b"" and not started(script)
    for knob in ("threads", "affinity", "allocator", "huge_pages", "omp_wait_policy"):
        assert knob in text
    assert text.rstrip().endswith(f"{script} 'an argument'")


def test_dry_run_as_json_is_the_whole_plan(script):
    done = launched("--dry-run", "--json", "--threads", "1", "--memory-allocator", "default", script, "x y")
    plan = json.loads(done.stdout)
    assert not started(script)
    assert plan["command"][1:] == [script, "x y"]
    assert plan["environment"] == {"OMP_NUM_THREADS": "1"}
    choices = {choice["knob"]: choice for choice in plan["plan"]}
    assert choices["threads"]["value"] == 1 and choices["threads"]["source"] == "user"
    assert choices["allocator"]["value"] is None and choices["allocator"]["source"] == "user"
    assert all(choice["reason"] for choice in plan["plan"])


def test_json_of_a_started_program_goes_to_standard_error(script):
    done = launched("--json", script, "1")
    assert started(script) and done.stdout == b"['1']\n"
    assert json.loads(done.stderr)["command"][1:] == [script, "1"]


def test_verbose_prints_the_plan_and_starts(script):
    done = launched("--verbose", script, "1")
    assert started(script) and done.stdout == b"['1']\n"
    assert b"threads" in done.stderr and b"the same without hfaccel" in done.stderr


def test_an_unknown_option_is_named(script):
    done = launched("--thread", "2", script)
    assert done.returncode == 2 and b"--thread" in done.stderr.splitlines()[-1] and not started(script)


@pytest.mark.parametrize("value", ["0", "-1", "abc", "", "1.5"])
def test_threads_must_be_a_number_from_one_on(script, value):
    text = refused(f"--threads={value}", script)
    assert "`threads >= 1` must hold" in text and repr(value) in text and "leave it out" in text
    assert not started(script)


def test_an_unknown_allocator_is_answered_with_those_found(script):
    text = refused("--memory-allocator", "nonsense", script)
    assert "'nonsense'" in text and "found here:" in text and "pip install" in text
    assert not started(script)


UNUSABLE = {
    "is a 32-bit library": elf_header(bits=32),
    "is built for machine 8": elf_header(machine=8),
    "is not an ELF library": b"INPUT(libm.so.6)  # a linker script\n",
    "cannot be read (No such file or directory)": None,
}


@pytest.mark.parametrize("problem", UNUSABLE)
def test_a_file_that_cannot_be_preloaded_is_refused(script, tmp_path, problem):
    path = tmp_path / "lib.so"
    if UNUSABLE[problem] is not None:
        path.write_bytes(UNUSABLE[problem])
    text = refused("--memory-allocator", str(path), script)
    assert "must be loadable" in text and str(path) in text and problem in text
    assert not started(script)


@pytest.mark.parametrize("problem", UNUSABLE)
def test_the_refusal_of_a_file_says_what_to_do(script, tmp_path, problem):
    path = tmp_path / "lib.so"
    if UNUSABLE[problem] is not None:
        path.write_bytes(UNUSABLE[problem])
    _, _, remedy = refused("--memory-allocator", str(path), script).partition("; ")
    assert "use" in remedy and "auto" in remedy


def test_a_folder_is_no_allocator(script, tmp_path):
    assert "cannot be read (Is a directory)" in refused("--memory-allocator", f"{tmp_path}/", script)


@pytest.mark.skipif(os.uname().machine not in MACHINES, reason="not an x86_64 or aarch64 machine")
@pytest.mark.parametrize("body", [b"", b"garbage" * 100, bytes(4096)])
def test_a_library_that_the_loader_refuses_is_refused_before(script, tmp_path, body):
    """Its header is right, so only trying it shows that it is broken."""
    path = tmp_path / "lib.so"
    path.write_bytes(elf_header() + body)
    text = refused("--memory-allocator", str(path), script)
    assert "must be loadable" in text and str(path) in text and "; use" in text
    assert not started(script)


def test_no_program_is_refused():
    assert "a script or -m module must be given" in refused()
    assert "see hfaccel-run --help" in refused("--threads", "1", "--")


@pytest.mark.parametrize("name", ["no-such.py", "/no/such/folder/script.py", "a/b.py", "x" * 300 + ".py"])
def test_a_missing_script_is_one_line(tmp_path, name):
    (tmp_path / "a").write_text("a file where a folder should be")
    assert "must exist" in (text := refused(name, cwd=tmp_path)) and name in text


def test_a_missing_script_in_a_folder_that_is_gone(tmp_path):
    """The folder that one stands in may have been removed; the message cannot name it then."""
    folder = tmp_path / "gone"
    folder.mkdir()
    command = ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", RUN, "no-such.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment())
    assert done.returncode == 2 and "Traceback" not in done.stderr and "must exist" in done.stderr


def obey_permissions() -> None:
    """Between fork and exec: root gives up the capabilities by which it may read everything."""
    if os.geteuid() == 0:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.mark.parametrize("where", ["script", "folder"])
def test_an_unreadable_script_is_one_line(script, where):
    locked = Path(script) if where == "script" else Path(script).parent
    locked.chmod(0)
    try:
        if plain(script, preexec_fn=obey_permissions, cwd="/").returncode == 0:
            pytest.skip("this user may read every file")
        text = refused(script, preexec_fn=obey_permissions, cwd="/")
    finally:
        locked.chmod(0o700)
    assert "must be readable" in text and script in text


@pytest.mark.parametrize("program", [["-x.py"], ["-u", "script.py"]])
def test_pythons_options_are_refused_with_a_remedy_that_works(tmp_path, program):
    """`--` in front does not help there, so the message must not send anyone to it."""
    text = refused("--", *program, cwd=tmp_path)
    assert repr(program[0]) in text and "put -- before it" not in text


def test_bytes_that_are_no_text_do_not_break_the_plan(script):
    for options in ([], ["--json"]):
        done = launched("--dry-run", *options, script, b"\xff", env={"PYTHONUTF8": "1"})
        assert done.returncode == 0 and b"Traceback" not in done.stderr


@pytest.mark.parametrize("code", [errno.E2BIG, errno.EACCES, errno.ENOMEM])
def test_a_program_that_cannot_be_started_is_one_line(monkeypatch, capsys, code):
    from hfaccel.commands import run

    def refuse(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "execve", refuse)
    monkeypatch.setattr(sys, "argv", ["hfaccel-run", "-c", "pass"])
    assert run.main() != 0
    text = capsys.readouterr().err
    assert os.strerror(code) in text and text.count("\n") == 1


def test_python_before_the_script_is_answered_with_what_to_leave_out(script):
    """As one writes it after numactl and taskset."""
    text = refused("python3", script)
    assert "no 'python3' in" in text and "leave python out" in text and "--no-python" in text

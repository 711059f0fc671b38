"""Systems that refuse what hfaccel-run asks of them, and programs that would run in circles."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from launching import (
    CPUS,
    FACTS,
    LIMIT,
    RUN,
    SIBLINGS,
    Family,
    environment,
    launched,
    needs_root,
    needs_two_cores,
    one_line,
    patched,
    refused,
    start,
)

import hfaccel
from hfaccel import native
from hfaccel.errors import ScriptError
from hfaccel.launcher import Settings
from hfaccel.launcher.prepare import check_start


@pytest.fixture
def family():
    with Family() as members:
        yield members


# Circles


def test_a_script_that_execs_hfaccel_run_on_itself_ends(tmp_path):
    script = tmp_path / "again.py"
    script.write_text(
        "import os, sys\nos.write(1, b'started\\n')\nrun = sys.argv[1]\nos.execv(run, [run, __file__, run])\n"
    )
    done = launched(str(script), RUN)
    assert done.stdout == b"started\n" and done.returncode == 2
    text = done.stderr.decode()
    assert text.startswith("hfaccel: hfaccel-run must not start itself again") and text.count("\n") == 1
    assert "unset HFACCEL_RUN" in text


def test_an_executable_that_execs_hfaccel_run_on_itself_ends(tmp_path):
    script = tmp_path / "again"
    script.write_text('#!/bin/sh\necho started\nexec "$1" --no-python "$0" "$1"\n')
    script.chmod(0o755)
    done = launched("--no-python", str(script), RUN)
    assert done.stdout == b"started\n" and done.returncode == 2
    assert b"must not start itself again" in done.stderr


@needs_two_cores
def test_instances_that_exec_hfaccel_run_on_themselves_end(family, tmp_path):
    script = tmp_path / "again"
    script.write_text('#!/bin/sh\nexec "$1" --no-python "$0" "$1"\n')
    script.chmod(0o755)
    done = family.run(RUN, "--ninstances", "2", "--no-python", str(script), RUN)
    assert done.returncode == 2 and b"must not start itself again" in done.stderr
    assert family.members() == set()


def test_the_remedy_of_the_message_works(tmp_path):
    done = launched("--no-python", "sh", "-c", f'unset HFACCEL_RUN; exec {RUN} -c "print(1)"')
    assert done.stdout == b"1\n" and done.stderr == b""


def test_a_process_number_of_somebody_else_is_no_circle():
    assert launched("-c", "print(1)", env={"HFACCEL_RUN": "1"}).stdout == b"1\n"


# An interpreter with privileges


def test_a_set_uid_interpreter_is_refused(tmp_path):
    """The loader drops LD_PRELOAD for it, so half of what was planned would silently not happen."""
    python = tmp_path / "python"
    shutil.copy(Path(sys.executable).resolve(), python)
    places = os.pathsep.join(filter(None, [str(Path(hfaccel.__file__).parent.parent), *sys.path]))
    command = [str(python), "-m", "hfaccel.commands.run", "-c", "print('started')"]
    home = {"PYTHONPATH": places, "PYTHONHOME": sys.base_prefix}
    usual = start(command, env=home)
    if usual.stdout != b"started\n":
        pytest.skip(f"a copy of this interpreter does not run: {usual.stderr.decode()[-200:]}")
    python.chmod(0o4755)
    text = one_line(start(command, env=home))
    assert "Python must not be set-uid" in text and str(python) in text
    assert start([*command[:3], "--no-python", "echo", "started"], env=home).stdout == b"started\n"


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6755])
def test_every_kind_of_set_uid_is_found(tmp_path, monkeypatch, mode):
    python = tmp_path / "python"
    python.touch()
    link = tmp_path / "link"
    link.symlink_to(python)
    monkeypatch.setattr(sys, "executable", str(link))
    python.chmod(0o755)
    check_start({}, Settings())
    python.chmod(mode)
    with pytest.raises(ScriptError, match="must not be set-uid or have capabilities"):
        check_start({}, Settings())
    check_start({}, Settings(python=False))


@needs_root
def test_an_interpreter_with_capabilities_is_found(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.touch()
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # CAP_NET_BIND_SERVICE, effective
    try:
        os.setxattr(python, "security.capability", capability)
    except OSError as error:
        pytest.skip(f"this file system holds no capabilities ({error.strerror})")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ScriptError, match="must not be set-uid or have capabilities"):
        check_start({}, Settings())


# No /proc


def without_proc(*command):
    shell = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh", *command]
    return subprocess.run(
        shell, capture_output=True, env=environment(), timeout=LIMIT, stdin=subprocess.DEVNULL
    )


@needs_root
@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--ninstances", "2"], ["--no-python"]], ids=" ".join)
def test_without_proc_nothing_is_started(tmp_path, options):
    if shutil.which("unshare") is None or without_proc("true").returncode != 0:
        pytest.skip("/proc cannot be hidden from a process here")
    trace = tmp_path / "started"
    program = ["touch", str(trace)] if "--no-python" in options else ["-c", f"open({str(trace)!r}, 'w')"]
    text = one_line(without_proc(RUN, *options, *program))
    assert "/proc must be mounted" in text
    assert not trace.exists()


# System calls that are refused, as a container's seccomp profile does it


REFUSES = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static int refused(const char *name)
{
  const char *names = getenv("REFUSED");
  return names != NULL && strstr(names, name) != NULL;
}

int sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *mask)
{
  int (*real)(pid_t, size_t, const cpu_set_t *) = dlsym(RTLD_NEXT, "sched_setaffinity");
  if (refused("affinity")) {
    errno = EPERM;
    return -1;
  }
  return real(pid, size, mask);
}

long syscall(long number, ...)
{
  long (*real)(long, long, long, long, long, long, long) = dlsym(RTLD_NEXT, "syscall");
  va_list list;
  va_start(list, number);
  long a[6];
  for (int i = 0; i < 6; i++)
    a[i] = va_arg(list, long);
  va_end(list);
  if ((number == SYS_set_mempolicy && refused("set_mempolicy")) ||
      (number == SYS_get_mempolicy && refused("get_mempolicy"))) {
    errno = ENOSYS;
    return -1;
  }
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int prctl(int option, ...)
{
  int (*real)(int, long, long, long, long) = dlsym(RTLD_NEXT, "prctl");
  va_list list;
  va_start(list, option);
  long a[4];
  for (int i = 0; i < 4; i++)
    a[i] = va_arg(list, long);
  va_end(list);
  if (option == PR_SET_PDEATHSIG && refused("pdeathsig")) {
    errno = EPERM;
    return -1;
  }
  return real(option, a[0], a[1], a[2], a[3]);
}
"""
COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    """Variables with which a process is refused the calls that it names."""
    if COMPILER is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("refusing")
    (folder / "refuses.c").write_text(REFUSES)
    library = str(folder / "librefuses.so")
    command = [COMPILER, "-shared", "-fPIC", "-o", library, str(folder / "refuses.c"), "-ldl"]
    subprocess.run(command, check=True, timeout=LIMIT)
    return lambda names: {"LD_PRELOAD": library, "REFUSED": names}


def test_a_mask_that_is_refused_is_one_note(refusing):
    cpu = CPUS[-1]
    done = launched("--cores-list", str(cpu), "-c", "print(1)", env=refusing("affinity"))
    assert done.stdout == b"1\n" and done.returncode == 0
    assert done.stderr.decode() == f"hfaccel-run: binding to CPUs {cpu} failed (Operation not permitted)\n"


def test_without_a_mask_to_set_there_is_no_note(refusing):
    done = launched(
        "--no-bind", "-c", "print(1)", env=refusing("affinity set_mempolicy get_mempolicy pdeathsig")
    )
    assert (done.stdout, done.stderr, done.returncode) == (b"1\n", b"", 0)


@needs_two_cores
def test_masks_that_are_refused_are_a_note_of_each_instance(refusing):
    done = launched("--ninstances", "2", "--no-python", "echo", "1", env=refusing("affinity"))
    assert done.returncode == 0, done.stderr.decode()
    assert sorted(done.stdout.splitlines()) == [b"[0] 1", b"[1] 1"]
    notes = done.stderr.decode().splitlines()
    assert len(notes) == 2
    for number, note in enumerate(notes):
        assert note.startswith(f"hfaccel-run: instance {number}: binding to CPUs ")


@needs_two_cores
def test_a_program_whose_mask_was_refused_starts_children_all_the_same(refusing):
    code = "import os, subprocess; os.system('echo 1'); subprocess.run(['echo', '2'], check=True)"
    done = start([*patched(SIBLINGS), "-c", code], env=refusing("affinity"))
    assert done.stdout == b"1\n2\n", done.stderr.decode()
    assert done.stderr.decode().count("\n") == 1 and b"binding to CPUs" in done.stderr


def test_a_library_that_binds_threads_can_be_imported_where_masks_are_refused(refusing, tmp_path):
    """hfaccel gives the main thread its mask back after torch was imported; here it may not."""
    (tmp_path / "torch.py").write_text("print('imported')")
    variables = {**refusing("affinity"), "OMP_PROC_BIND": "close", "PYTHONPATH": str(tmp_path)}
    done = launched("--no-bind", "-c", "import torch", env=variables)
    assert done.stdout == b"imported\n" and done.returncode == 0, done.stderr.decode()


needs_native = pytest.mark.skipif(native.arena is None, reason="the native part is missing")
NODE = str(FACTS.topology.nodes[0].number)


@needs_native
def test_a_memory_policy_that_is_refused_is_one_note(refusing):
    done = launched("--memory-policy", f"preferred:{NODE}", "-c", "print(1)", env=refusing("set_mempolicy"))
    assert done.stdout == b"1\n" and done.returncode == 0
    expected = f"hfaccel-run: memory policy preferred:{NODE} is not set (Function not implemented)\n"
    assert done.stderr.decode() == expected


@needs_native
@needs_two_cores
@pytest.mark.parametrize("calls", ["set_mempolicy", "get_mempolicy", "get_mempolicy set_mempolicy"])
def test_a_memory_policy_that_is_refused_is_a_note_of_each_instance(refusing, calls):
    options = ["--ninstances", "2", "--memory-policy", f"preferred:{NODE}", "--no-python", "echo", "1"]
    done = launched(*options, env=refusing(calls))
    assert sorted(done.stdout.splitlines()) == [b"[0] 1", b"[1] 1"] and done.returncode == 0
    notes = done.stderr.decode().splitlines()
    assert len(notes) == (2 if "set_mempolicy" in calls.split() else 0)
    assert all("memory policy" in note and "is not set" in note for note in notes)


@needs_native
@needs_two_cores
def test_instances_run_where_the_kernel_does_not_end_them_with_us(refusing):
    done = launched("--ninstances", "2", "--no-python", "echo", "1", env=refusing("pdeathsig"))
    assert sorted(done.stdout.splitlines()) == [b"[0] 1", b"[1] 1"], done.stderr.decode()
    assert done.returncode == 0 and b"Traceback" not in done.stderr


# What this machine does not have


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--cores-list", "60000"], "within the affinity mask"),
        (["--cores-list", ""], "within the affinity mask"),
        (["--cores-list", "a"], "such as 0-3,8"),
        (["--cores-list", "5-2"], "`low <= high < 65536`"),
        (["--cores-list", "0-"], "such as 0-3,8"),
        (["--cores-list", "-1"], "such as 0-3,8"),
        (["--node-id", "999"], "NUMA nodes must have CPUs"),
        (["--node-id", ""], "NUMA nodes must have CPUs"),
        (["--node-id", "-1"], "such as 0-3,8"),
        (["--memory-policy", "bind:999"], "a memory policy is off, or"),
        (["--memory-policy", "bind:"], "a memory policy is off, or"),
        (["--memory-policy", "0"], "a memory policy is off, or"),
        (["--memory-policy", ""], "a memory policy is off, or"),
        (["--huge-pages", "2M"], "huge_pages must be auto, thp or off"),
        (["--huge-pages", ""], "huge_pages must be auto, thp or off"),
        (["--omp-runtime", "llvm"], "the OpenMP runtime must be"),
        (["--omp-runtime", "/no/such/lib.so"], "an OpenMP runtime must be loadable"),
        (["--memory-allocator", ""], "the allocator must be"),
        (["--threads", ""], "`threads >= 1` must hold"),
        (["--latency-mode", "--throughput-mode"], "options must ask for one mode"),
        (["--profile", "/no/such/profile"], "a profile must be a readable file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_had_is_one_line_and_nothing_is_started(tmp_path, options, text):
    trace = tmp_path / "started"
    assert text in refused(*options, "-c", f"open({str(trace)!r}, 'w')")
    assert not trace.exists()

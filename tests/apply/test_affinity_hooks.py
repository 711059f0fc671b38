"""The mask over an import of torch, and the mask of children, in real processes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest

from hfaccel.apply import hooks
from hfaccel.host import parse_number_list, read_host

MASK = sorted(os.sched_getaffinity(0))
needs_two_cpus = pytest.mark.skipif(len(MASK) < 2, reason="there is only one CPU")


def run(script, *arguments, **environment):
    """Run a script that prints a line of JSON as its last; returns it and what came on standard error."""
    clean = {name: value for name, value in os.environ.items() if name not in hooks.BINDING}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


# Children

METHODS = (
    "subprocess.run",
    "subprocess.Popen with preexec_fn",
    "subprocess.run with close_fds=False",
    "os.system",
    "os.popen",
    "os.fork",
    "os.spawnv",
    "os.posix_spawn",
    "os.posix_spawnp",
    "multiprocessing fork",
    "multiprocessing spawn",
    "multiprocessing forkserver",
    "subprocess.run in a thread",
    "a child of a forked child",
)
CHILDREN = """
import json, os, signal, sys, threading
signal.alarm(100)  # a test shall fail and not hang
imported, hook_mask, folder, *left_out = sys.argv[1:]
if imported == "before":  # as in every program that has imported torch
    import multiprocessing.util, subprocess
full = os.sched_getaffinity(0)
own, other = {min(full)}, {max(full)}
os.sched_setaffinity(0, own)
from hfaccel.apply import hooks
hooks.give_children_affinity(set(map(int, hook_mask.split(","))))
import multiprocessing, subprocess

count = 0
def output():
    global count
    count += 1
    return f"{folder}/{count}"

TEXT = "grep ^Cpus_allowed_list /proc/self/status"
def shell(file):
    return ["/bin/sh", "-c", f"{TEXT} > {file}"]

def forked(action):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0

def own_mask(file):
    with open(file, "w") as target:
        target.write("x:" + ",".join(map(str, os.sched_getaffinity(0))))

def pooled(method):
    def start(file):
        with multiprocessing.get_context(method).Pool(1) as pool:
            mask = pool.apply(os.sched_getaffinity, (0,))
        open(file, "w").write("x:" + ",".join(map(str, mask)))
    return start

def waited(spawn):
    def start(file):
        assert os.waitpid(spawn("/bin/sh", shell(file), dict(os.environ)), 0)[1] == 0
    return start

def in_a_thread(file):
    def work():
        os.sched_setaffinity(0, other)
        subprocess.run(shell(file), check=True)
        assert os.sched_getaffinity(0) == other
        done.append(1)
    done = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done

METHODS = {
    "subprocess.run": lambda file: subprocess.run(shell(file), check=True),
    "subprocess.Popen with preexec_fn": lambda f: subprocess.run(shell(f), check=True, preexec_fn=os.getpid),
    "subprocess.run with close_fds=False": lambda f: subprocess.run(shell(f), check=True, close_fds=False),
    "os.system": lambda file: os.system(f"{TEXT} > {file}"),
    "os.popen": lambda file: os.popen(f"{TEXT} > {file}").close(),
    "os.fork": lambda file: forked(lambda: own_mask(file)),
    "os.spawnv": lambda file: os.spawnv(os.P_WAIT, "/bin/sh", shell(file)),
    "os.posix_spawn": waited(os.posix_spawn),
    "os.posix_spawnp": waited(os.posix_spawnp),
    "multiprocessing fork": pooled("fork"),
    "multiprocessing spawn": pooled("spawn"),
    "multiprocessing forkserver": pooled("forkserver"),
    "subprocess.run in a thread": in_a_thread,
    "a child of a forked child": lambda file: forked(lambda: forked(lambda: os.system(f"{TEXT} > {file}"))),
}

stop, seen = threading.Event(), set()
def watch():
    os.sched_setaffinity(0, other)
    while not stop.is_set():
        seen.add(frozenset(os.sched_getaffinity(0)))
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()

children, parent = {}, {}
for name, start in METHODS.items():
    if name.split()[0] in left_out:
        continue
    file = output()
    try:
        start(file)
        children[name] = open(file).read().partition(":")[2].strip()
    except Exception as error:
        children[name] = repr(error)
    parent[name] = sorted(os.sched_getaffinity(0))
try:
    subprocess.run(["/no/such/program"])
except FileNotFoundError:
    parent["a program that is not there"] = sorted(os.sched_getaffinity(0))
stop.set()
watcher.join()
print(json.dumps({"children": children, "parent": parent, "thread": sorted(map(sorted, seen))}))
"""


@pytest.fixture(scope="module", params=["before", "after"])
def children(request, tmp_path_factory):
    """A program bound to one CPU that starts children in all ways; subprocess is imported before or after."""
    folder = str(tmp_path_factory.mktemp("children"))
    return run(CHILDREN, request.param, ",".join(map(str, MASK)), folder)


@needs_two_cpus
@pytest.mark.parametrize("method", METHODS)
def test_children_have_the_mask_that_they_shall_have(children, method):
    assert parse_number_list(children[0]["children"][method]) == tuple(MASK)


@needs_two_cpus
def test_the_program_stays_bound_while_it_starts_children(children):
    assert set(children[0]["children"]) == set(METHODS)
    starts = [*METHODS, "a program that is not there"]
    assert children[0]["parent"] == {start: [MASK[0]] for start in starts}


@needs_two_cpus
def test_other_threads_keep_their_masks_meanwhile(children):
    assert children[0]["thread"] == [[MASK[-1]]]


@needs_two_cpus
def test_nothing_is_said_about_it(children):
    assert children[1] == ""


@needs_two_cpus
@pytest.mark.parametrize("imported", ["before", "after"])
def test_a_mask_that_the_system_refuses_stops_no_child(tmp_path, imported):
    """Such as one that a container was forbidden to use since; the child keeps its parent's mask then."""
    # without multiprocessing, whose pools wait for ever for workers that cannot be started
    seen, said = run(CHILDREN, imported, "4095", str(tmp_path), "multiprocessing")
    others = [method for method in METHODS if not method.startswith("multiprocessing")]
    assert seen["children"] == {
        method: str(MASK[-1] if method == "subprocess.run in a thread" else MASK[0]) for method in others
    }
    assert said == ""


# The import of torch

IMPORT = """
import json, os, sys
from hfaccel.apply import hooks
seen = []
def look():
    seen.append(sorted(os.sched_getaffinity(0)))
look()
hooks.after_import("torch", look)
hooks.keep_affinity_over_import()
import torch
look()
torch.relu(torch.ones(1 << 20)).sum()
look()
print(json.dumps({"seen": seen, "threads": torch.get_num_threads()}))
"""
BINDINGS = {
    "OMP_PROC_BIND": "true",
    "GOMP_CPU_AFFINITY": " ".join(map(str, MASK)),
    "KMP_AFFINITY": "granularity=fine,compact,1,0",
}


@needs_two_cpus
@pytest.mark.parametrize("variable", BINDINGS)
def test_the_mask_survives_the_import_of_torch(variable):
    environment = {variable: BINDINGS[variable]}
    if variable == "KMP_AFFINITY":
        intel = [library.path for library in read_host().openmp if library.kind == "intel"]
        if not intel:
            pytest.skip("Intel's OpenMP is not installed, and no other reads KMP_AFFINITY")
        environment["LD_PRELOAD"] = intel[0]
    program, _ = run(IMPORT, **environment)
    before, shrunk, after, computed = program["seen"]
    if shrunk == before:
        pytest.skip(f"this OpenMP does not bind the thread that loads it with {environment}")
    assert (before, after) == (MASK, MASK)
    # The master thread of a parallel region may be bound while it computes with OMP_PROC_BIND; what the
    # hook is for is that importing does not do it.
    assert len(shrunk) < len(MASK) and computed


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """A module "openmp" whose import binds this thread to one CPU, as an OpenMP runtime does."""
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in hooks.BINDING:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "openmp.py").write_text("import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})")
    importlib.invalidate_caches()
    yield lambda: importlib.import_module("openmp")
    sys.modules.pop("openmp", None)
    os.sched_setaffinity(0, MASK)


@pytest.mark.parametrize("variable", hooks.BINDING)
def test_any_of_the_variables_makes_the_hook_wait(loaded, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    hooks.keep_affinity_over_import("openmp")
    loaded()
    assert sorted(os.sched_getaffinity(0)) == MASK


@pytest.mark.parametrize("value", [None, ""])
def test_without_such_a_variable_nothing_is_waited_for(loaded, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("OMP_PROC_BIND", value)
    finders = sys.meta_path[:]
    hooks.keep_affinity_over_import("openmp")
    assert sys.meta_path == finders


def test_a_mask_that_cannot_be_restored_does_not_stop_the_import(loaded, monkeypatch):
    def refuse(pid, cpus):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setenv("OMP_PROC_BIND", "true")
    hooks.keep_affinity_over_import("openmp")
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_setaffinity", lambda *given: patch.setattr(os, "sched_setaffinity", refuse))
        assert loaded().__name__ == "openmp"

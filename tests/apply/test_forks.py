"""survive_forks: a child of a process whose torch has threads computes with its own, instead of hanging."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hfaccel import engine

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU: torch has no threads")

# A child that hangs is ended by its alarm, which is a result like any other; nothing waits for a timeout.
TOOLS = """
import ctypes, json, os, signal, sys, threading
results = {}

def fork_in_c():
    # As uWSGI does: of Python's hooks only those in the child run.
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    return pid

def fork(name, action, start=os.fork):
    reading, writing = os.pipe()
    pid = start()
    if pid == 0:
        signal.alarm(15)
        try:
            os.write(writing, json.dumps(action()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    answer = b"".join(iter(lambda: os.read(reading, 1000), b""))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    results[name] = [code, json.loads(answer) if answer else None]

def compute():
    import torch
    product = torch.ones(512, 512) @ torch.ones(512, 512)
    return [torch.get_num_threads(), float(torch.relu(product).sum())]

"""
EARLY = f"""{TOOLS}
from hfaccel.apply import hooks
hooks.survive_forks()
fork("without torch", lambda: 1)
import torch
results["threads"] = torch.get_num_threads()
fork("before threads", compute)
print(json.dumps(results))
"""
LATE = f"""{TOOLS}
import hfaccel
hfaccel.configure(threads=2)
import torch
results["own"] = [0, compute()]
for number in range(3):
    fork(f"forked {{number}}", compute)
    fork(f"forked in C {{number}}", compute, fork_in_c)

def twice():
    compute()
    fork("inner", compute)
    return results["inner"]
fork("child of a child", twice)

def after_setting():
    torch.set_num_threads(2)
    return compute()
def after_configuring():
    hfaccel.configure(threads=3)
    return compute()
def after_optimizing():
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU()).eval()
    fast = hfaccel.optimize(model, num_threads=2)
    with torch.inference_mode():
        agree = torch.allclose(fast(torch.ones(64, 512)), model(torch.ones(64, 512)), atol=1e-4)
    return [*compute(), agree]
for name, start in (("", os.fork), (" in C", fork_in_c)):
    for action in (after_setting, after_configuring, after_optimizing):
        fork(action.__name__ + name, action, start)

def in_thread():
    compute()
    fork("from a thread", compute)
    fork("from a thread in C", compute, fork_in_c)
thread = threading.Thread(target=in_thread)
thread.start()
while thread.is_alive():
    compute()  # the threads of the thread that does not fork stay
thread.join()

import multiprocessing
def work(connection):
    signal.alarm(15)
    connection.send(compute())
receiving, sending = multiprocessing.Pipe(False)
process = multiprocessing.get_context("fork").Process(target=work, args=(sending,))
process.start()
sending.close()
try:
    answer = receiving.recv()
except EOFError:
    answer = None
process.join()
results["multiprocessing"] = [process.exitcode, answer]
results["own again"] = [0, compute()]
torch.set_num_threads(3)
compute()
fork("with other threads", compute)
print(json.dumps(results))
"""
SUM = float(512**3)
PLAIN = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}


def run(script, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**PLAIN, "OMP_WAIT_POLICY": "passive", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def early():
    return run(EARLY)


@pytest.fixture(scope="module")
def late():
    return run(LATE)


def test_without_torch_a_fork_is_a_fork(early):
    assert early[0]["without torch"] == [0, 1]


def test_a_fork_before_torch_has_threads_computes_with_all_of_them(early):
    """What a server does that imports torch and forks its workers, which then load the model."""
    assert early[0]["before threads"] == [0, [early[0]["threads"], SUM]]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("how", ["forked", "forked in C"])
def test_a_forked_child_computes_with_all_threads(late, how, number):
    assert late[0][f"{how} {number}"] == [0, [2, SUM]]


@pytest.mark.parametrize("name", ["multiprocessing", "from a thread", "from a thread in C"])
def test_so_does_a_child_of_multiprocessing_or_of_a_thread(late, name):
    assert late[0][name] == [0, [2, SUM]]


def test_a_child_of_a_child_computes(late):
    assert late[0]["child of a child"] == [0, [0, [2, SUM]]]


@pytest.mark.parametrize("how", ["", " in C"])
def test_a_child_may_choose_its_threads(late, how):
    assert late[0][f"after_setting{how}"] == [0, [2, SUM]]
    assert late[0][f"after_configuring{how}"] == [0, [3, SUM]]


@pytest.mark.skipif(bool(engine.kernels_problem()), reason="the kernels cannot run here")
@pytest.mark.parametrize("how", ["", " in C"])
def test_a_child_may_optimize(late, how):
    assert late[0][f"after_optimizing{how}"] == [0, [2, SUM, True]]


@pytest.mark.parametrize("name", ["own", "own again"])
def test_the_parent_keeps_its_threads(late, name):
    assert late[0][name] == [0, [2, SUM]]


def test_a_child_has_the_number_that_the_program_has_set(late):
    assert late[0]["with other threads"] == [0, [3, SUM]]


def test_nothing_is_said(early, late):
    assert early[1] == late[1] == ""


# Which runtime it is about

BESIDE = f"""{TOOLS}
mode = ctypes.RTLD_GLOBAL if sys.argv[2] == "global" else ctypes.RTLD_LOCAL
if sys.argv[3] == "first":
    ctypes.CDLL(sys.argv[1], mode)
import torch, hfaccel
hfaccel.configure(threads=2)
if sys.argv[3] == "later":
    ctypes.CDLL(sys.argv[1], mode)
compute()
fork("python", compute)
fork("c", compute, fork_in_c)
print(json.dumps(results))
"""


@pytest.mark.parametrize(("mode", "when"), [("local", "first"), ("local", "later"), ("global", "later")])
def test_a_runtime_that_only_lies_beside_torchs_changes_nothing(tmp_path, mode, when):
    """numpy's MKL and others bring libiomp5. Here its name is that of some other library."""
    beside = tmp_path / "libiomp5.so"
    shutil.copy(str(next(Path(torch.__file__).parent.glob("lib/libc10.so"))), beside)
    found, said = run(BESIDE, beside, mode, when)
    assert found == {"python": [0, [2, SUM]], "c": [0, [2, SUM]]}
    assert said == ""


INTEL = next(Path(sys.prefix).glob("lib/libiomp5.so"), None)
needs_intel = pytest.mark.skipif(INTEL is None, reason="intel-openmp is not installed")


@needs_intel
@pytest.mark.parametrize(
    ("mode", "when"), [("local", "first"), ("local", "later"), ("global", "later"), ("global", "first")]
)
def test_intels_runtime_beside_torchs_or_in_its_place(mode, when):
    assert run(BESIDE, INTEL, mode, when)[0] == {"python": [0, [2, SUM]], "c": [0, [2, SUM]]}


@needs_intel
def test_a_preloaded_runtime_of_intels_starts_anew_by_itself():
    found = run(BESIDE, INTEL, "local", "never", LD_PRELOAD=str(INTEL))[0]
    assert found == {"python": [0, [2, SUM]], "c": [0, [2, SUM]]}


# A runtime that cannot be helped

OLD = f"""{TOOLS}
from hfaccel.apply import openmp
openmp.END_THREADS = "no_function_of_this_name"  # as in a GNU runtime before GCC 9
import hfaccel
hfaccel.configure(threads=2)
compute()

def after_configuring():
    refused = [row.reason for row in hfaccel.configure(threads=2).outcomes if row.subject == "threads"]
    return [*compute(), refused]

def after_optimizing():
    import torch
    fast = hfaccel.optimize(torch.nn.Sequential(torch.nn.Linear(64, 64)).eval(), num_threads=2)
    rows = hfaccel.report(fast).configuration.outcomes
    return [*compute(), [row.reason for row in rows if row.subject == "threads"]]
for name, start in (("python", os.fork), ("c", fork_in_c)):
    fork(name, compute, start)
    fork(name + " configures", after_configuring, start)
    fork(name + " optimizes", after_optimizing, start)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def old():
    return run(OLD)


@pytest.mark.parametrize("how", ["python", "c"])
def test_with_a_runtime_that_cannot_be_restarted_a_child_computes_with_one_thread(old, how):
    assert old[0][how] == [0, [1, SUM]]
    assert "spawn" in old[1]


@pytest.mark.parametrize("how", ["python configures", "c configures", "python optimizes", "c optimizes"])
def test_there_more_threads_are_refused_with_the_reason(old, how):
    code, (threads, total, reasons) = old[0][how]
    assert (code, threads, total) == (0, 1, SUM)
    (reason,) = reasons
    assert "there is no no_function_of_this_name" in reason

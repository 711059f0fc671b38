"""survive_forks: a child of a process whose torch has threads computes instead of hanging."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hfaccel.apply import hooks

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU: torch has no threads")

# A child that hangs is ended by its alarm, which is a result like any other; nothing waits for a timeout.
SCRIPT = """
import json, os, signal, sys
from hfaccel.apply import hooks
hooks.survive_forks()
results = {}

def fork(name, action):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
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
EARLY = f"""{SCRIPT}
fork("without torch", lambda: 1)
import torch
results["threads"] = torch.get_num_threads()
fork("before threads", compute)
print(json.dumps(results))
"""
LATE = f"""{SCRIPT}
import torch
results["threads"] = torch.get_num_threads()
results["own"] = [0, compute()]
for number in range(3):
    fork(f"forked {{number}}", compute)

def twice():
    compute()
    fork("inner", compute)
    return results["inner"]
fork("child of a child", twice)

import multiprocessing
def work(connection):
    signal.alarm(10)
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


def run(script):
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=200,
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
    """What a server does that imports torch and forks its workers, which then load the model.

    That there are threads of others, such as those of numpy's OpenBLAS, changes nothing."""
    assert early[0]["before threads"] == [0, [early[0]["threads"], SUM]]


def test_a_fork_before_torch_has_threads_says_nothing(early):
    assert early[1] == ""


@pytest.mark.parametrize(
    "name", ["forked 0", "forked 1", "forked 2", "multiprocessing", "with other threads"]
)
def test_a_forked_child_computes_with_one_thread(late, name):
    """Not only the first: a fork ends threads of OpenBLAS in the parent, so there are fewer at the next."""
    assert late[0][name] == [0, [1, SUM]]


def test_a_child_of_a_child_computes(late):
    assert late[0]["child of a child"] == [0, [0, [1, SUM]]]


@pytest.mark.parametrize("name", ["own", "own again"])
def test_the_parent_keeps_its_threads(late, name):
    assert late[0]["threads"] > 1
    assert late[0][name] == [0, [late[0]["threads"], SUM]]


def test_it_is_said_once(late):
    assert late[1] == f"{hooks.FORKED}\n"
    assert "spawn" in hooks.FORKED and "\n" not in hooks.FORKED

"""Hard environments: limits of this process, huge pages switched off. What is refused is a reason."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PRELUDE = """
import ctypes, json, os, resource, sys
import torch
from torch import nn
import hfaccel
from hfaccel import memory
MIB = 1 << 20
torch.zeros(1 << 20)  # starts torch's threads, each with a stack of its own
"""


def run(code, *, wait=contextlib.nullcontext):
    """What a program prints, as JSON. It imports first; what follows `ready()` happens inside `wait()`."""
    program = PRELUDE + "def ready():\n    print('ready', flush=True)\n    sys.stdin.readline()\n" + code
    command = [sys.executable, "-c", program]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **pipes) as process:
        if process.stdout.readline() != "ready\n":
            raise AssertionError(process.stderr.read())
        with wait():
            output, errors = process.communicate("go\n", timeout=120)
    assert process.returncode == 0, errors
    return json.loads(output)


# RLIMIT_AS: a limit of the address space

LIMITED = """
def limit(more):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.getrlimit(resource.RLIMIT_AS)[1]))
def free():
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
def attempt(call):
    try:
        return call() and ""
    except (RuntimeError, OSError) as error:
        return type(error).__name__ + ": " + str(error)
"""

ARENA = (
    LIMITED
    + """
ready()
limit(200 * MIB)
refused = attempt(lambda: memory.Arena(400 * MIB))
small = memory.Arena(64 * MIB)
small.take((1000,)).fill_(1)
# The slack for alignment no longer fits, but the memory itself does: torch's allocator serves.
limit(33 * MIB)
tight = memory.Arena(32 * MIB)
tight.take((8 * MIB,)).fill_(2)
print(json.dumps([refused, small.problem, tight.pages, tight.problem]))
"""
)


def test_an_arena_under_a_limit_of_the_address_space_is_refused_or_torchs():
    refused, small, tight_pages, tight = run(ARENA)
    assert "can't allocate memory" in refused and "419430400 bytes" in refused
    assert small == ""
    assert tight_pages == "default"
    assert "mmap of 33554432 bytes" in tight and "Cannot allocate memory" in tight


PACK = (
    LIMITED
    + """
layers = [nn.Linear(1500, 1500) for _ in range(20)]  # 9 MB each: together more than is left
model = nn.Sequential(*layers)
inputs = torch.randn(2, 1500)
with torch.inference_mode():
    expected = model(inputs)
    addresses = [p.data_ptr() for p in model.parameters()]
    ready()
    limit(100 * MIB)
    problem = attempt(lambda: memory.pack_(model))
    same = [p.data_ptr() for p in model.parameters()] == addresses
    free()
    print(json.dumps([problem, same, torch.equal(model(inputs), expected)]))
"""
)


def test_a_model_that_cannot_be_moved_stays_as_it_was():
    problem, in_place, equal = run(PACK)
    assert "can't allocate memory" in problem
    assert in_place and equal


OPTIMIZE = (
    LIMITED
    + """
from transformers import BertConfig, BertModel
torch.manual_seed(0)
sizes = dict(hidden_size=512, num_attention_heads=8, intermediate_size=2048, vocab_size=1000)
model = BertModel(BertConfig(**sizes, num_hidden_layers=4)).eval()
tokens = torch.randint(5, 1000, (2, 9))
with torch.inference_mode():
    expected = model(tokens)[0]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    hfaccel.configure()
    warm = hfaccel.optimize(BertModel(BertConfig(**sizes, num_hidden_layers=1)).eval())
    warm(tokens)  # now all that is imported late or made once is there
    memory.release()
    ready()
    limit(int(sys.argv[1]) * MIB)
    problem = attempt(lambda: hfaccel.optimize(model))
    free()
    now = model.state_dict()
    intact = all(torch.equal(value, now[name]) for name, value in state.items())
    close = torch.allclose(model(tokens)[0], expected, atol=1e-4)
    print(json.dumps([problem, intact, close]))
"""
)


@pytest.mark.parametrize("mib", [4, 40])
def test_a_model_is_whole_after_optimize_has_run_out_of_memory(mib):
    """50 MiB of weights. Wherever memory ends, every value stays and the model computes."""
    problem, intact, close = run(OPTIMIZE.replace("sys.argv[1]", repr(mib)))
    if problem:
        assert "memory" in problem
    assert intact and close


# RLIMIT_MEMLOCK

LOCKED = """
ready()
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)  # nobody: without CAP_IPC_LOCK
arena = memory.Arena(4 * MIB, locked=True)
total = arena.take((MIB,)).fill_(1).sum().item()
layer = nn.Linear(100, 100)
packed = memory.pack_(layer, locked=True)
print(json.dumps([arena.problem, arena.pages, total, packed.problem, layer(torch.zeros(100)).shape[0]]))
"""


def test_without_the_right_to_lock_memory_it_is_not_locked_and_says_so():
    problem, pages, total, packed, width = run(LOCKED)
    for reason in (problem, packed):
        assert "mlock: " in reason and ("not permitted" in reason or "Cannot allocate" in reason)
    assert pages in ("thp", "default")
    assert (total, width) == (1 << 20, 100)


def test_memory_that_may_be_locked_is():
    code = """
resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * MIB, 8 * MIB))
ready()
arena = memory.Arena(4 * MIB, locked=True)
status = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("VmLck"))
print(json.dumps([arena.problem, status["VmLck"].split()[0]]))
"""
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if os.geteuid() != 0 and 0 <= hard < 8 << 20:
        pytest.skip(f"RLIMIT_MEMLOCK is {hard} bytes here")
    problem, locked = run(code)
    assert "mlock" not in problem
    assert int(locked) >= 4096


# Transparent huge pages that are switched off

PAGES = """
plan = lambda: hfaccel.plan.make_plan(hfaccel.host.read_host(), hfaccel.plan.Goal("process"))["huge_pages"]
import hfaccel.host, hfaccel.plan
ready()
SWITCH_OFF
arena = memory.Arena(8 * MIB)
tensor = arena.take((2 * MIB,)).fill_(1)
model = nn.Sequential(nn.Linear(1000, 1000), nn.Linear(1000, 1000))
inputs = torch.randn(2, 1000)
expected = model(inputs)
packed = memory.pack_(model)
print(json.dumps({
    "plan": plan()[1:3],
    "arena": [arena.pages, arena.problem],
    "pack": packed.problem,
    "coverage": [memory.coverage(what) for what in (tensor, model, memory.empty(4 * MIB).fill_(1))],
    "equal": torch.equal(model(inputs), expected),
}))
"""


def check_no_huge_pages(answer, reason):
    assert answer["plan"] == ["off", reason]
    assert answer["arena"] == ["default", reason]
    assert answer["pack"] == reason
    assert answer["coverage"] == [0, 0, 0]
    assert answer["equal"]


def test_a_process_that_may_have_no_huge_pages_is_told():
    call = "assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0  # PR_SET_THP_DISABLE"
    reason = "transparent huge pages are switched off for this process (PR_SET_THP_DISABLE)"
    check_no_huge_pages(run(PAGES.replace("SWITCH_OFF", call)), reason)


@contextlib.contextmanager
def never():
    """The mode for the whole machine, for as short as possible: other programs feel it too."""
    before = THP.read_text().partition("[")[2].partition("]")[0]
    THP.write_text("never")
    try:
        yield
    finally:
        THP.write_text(before)


def test_on_a_machine_without_huge_pages_the_reason_is_its_mode():
    own = Path("/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled")
    if not (THP.exists() and os.access(THP, os.W_OK)):
        pytest.skip("only root may switch transparent huge pages off, where there are any")
    if own.exists() and "[inherit]" not in own.read_text():
        pytest.skip("2 MiB pages have a mode of their own on this machine")
    answer = run(PAGES.replace("SWITCH_OFF", ""), wait=never)
    check_no_huge_pages(answer, "the kernel gives no transparent huge pages (mode never)")

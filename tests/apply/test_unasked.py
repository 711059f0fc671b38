"""What optimize() changes of the process around the model: by default, asked for, declined and undone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hfaccel
from hfaccel import native
from hfaccel.apply.process import GLIBC_DEFAULT
from hfaccel.errors import UsageError
from hfaccel.plan import KNOBS

HOST = Path(__file__).parent.parent / "hosts/xeon-2-sockets.txt"  # CPUs 0-15, siblings 8 apart; two nodes
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in {variable for knob in KNOBS for variable in knob.variables}
}
needs_arena = pytest.mark.skipif(native.arena is None, reason="the native part is missing")

# The program believes to run on HOST. The kernel's calls are noted and not made.
PROGRAM = f"""
import json, os, subprocess, sys
import torch
import hfaccel
from hfaccel import configuration, native
from hfaccel.host import read_host
from pathlib import Path

host = read_host(Path({str(HOST)!r}))
configuration.read_host = lambda: host
first = torch.get_num_threads()
bound, policies, kept = [], [], []
os.sched_setaffinity = lambda pid, cpus: bound.append(sorted(cpus))

class Arena:
    def memory_policy(self):
        return policies[-1] if policies else ("default", ())
    def set_memory_policy(self, mode, nodes):
        policies.append((mode, nodes))
    def mallopt(self, option, number):
        kept.append((option, number))
        return True
    def __getattr__(self, name):
        return getattr(arena, name)
arena, native.arena = native.arena, Arena()

system, variables, mask = os.system, dict(os.environ), os.sched_getaffinity(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)).eval()

def state():
    done = configuration.current()
    return {{
        "threads": torch.get_num_threads() - first,
        "interop": torch.get_num_interop_threads(),
        "bound": list(bound),
        "policy": native.arena.memory_policy()[0],
        "policies": [mode for mode, _ in policies],
        "malloc": bool(kept),
        "options": dict(kept),
        "children": os.system is not system,
        "variables": dict(os.environ) == variables,
        "done": [row.subject for row in (*done.outcomes, *done.hooks) if row.applied],
        "left": {{row.subject: row.reason for row in (*done.outcomes, *done.hooks) if not row.applied}},
    }}
"""
ALL = [
    "allocator",
    "memory_policy",
    "threads",
    "interop_threads",
    "affinity",
    "forks",
    "affinity of children",
]


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program], env=CLEAN, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_arena
def test_optimize_alone_does_what_is_harmless():
    found = run("hfaccel.optimize(model); print(json.dumps(state()))")
    assert found["done"] == ["allocator", "threads", "forks"]
    assert found["threads"] != 0 and found["malloc"]
    assert found["interop"] != 1 and found["bound"] == [] and not found["children"] and found["variables"]
    assert found["left"]["affinity"].startswith("left to configure(): all threads and processes")


@needs_arena
def test_weights_are_placed_on_the_nodes_all_the_same():
    """And memory of the program is where it was."""
    found = run("hfaccel.optimize(model); print(json.dumps(state()))")
    assert found["policies"] == ["interleave", "default"]
    assert "while weights are placed: new pages: interleave:0-1" in found["left"]["memory_policy"]


@needs_arena
@pytest.mark.parametrize(
    "program",
    [
        "hfaccel.configure(); hfaccel.optimize(model)",
        "hfaccel.optimize(model, configure=True)",
        "hfaccel.optimize(model); hfaccel.configure()",
        "hfaccel.optimize(model, configure=False); hfaccel.configure()",
    ],
)
def test_asked_for_all_is_done(program):
    found = run(f"{program}; print(json.dumps(state()))")
    assert found["done"] == ALL
    assert found["interop"] == 1 and found["policy"] == "interleave" and found["children"]
    assert found["bound"] and found["malloc"]


def test_declined_nothing_is_done():
    found = run("hfaccel.optimize(model, configure=False); print(json.dumps(state()))")
    assert found["done"] == [] and len(found["left"]) == len(ALL)
    assert found["threads"] == 0 and not found["malloc"] and found["policies"] == []
    assert all(reason for reason in found["left"].values())


def test_declined_the_number_of_threads_that_is_asked_for_is_set():
    found = run("hfaccel.optimize(model, configure=False, num_threads=first + 1); print(json.dumps(state()))")
    assert found["done"] == ["threads"] and found["threads"] == 1 and not found["malloc"]


def test_a_report_configures_nothing():
    found = run(
        "fast = hfaccel.optimize(model, configure=False); hfaccel.report(fast); print(json.dumps(state()))"
    )
    assert found["done"] == [] and found["threads"] == 0


def test_the_report_has_what_was_left_and_why():
    found = run("print(json.dumps(str(hfaccel.report(hfaccel.optimize(model)))))")
    assert "left to configure(): torch sets them once" in found
    assert "a forked child starts threads of its own" in found


@needs_arena
def test_one_knob_is_declined():
    found = run('hfaccel.configure(affinity="off", allocator="default"); print(json.dumps(state()))')
    assert found["done"] == ["memory_policy", "threads", "interop_threads", "forks"]
    assert found["bound"] == [] and not found["malloc"]


@pytest.mark.parametrize("wanted", ["all", None, 2])
def test_other_values_are_refused(wanted):
    with pytest.raises(UsageError, match=r"configure must be 'auto', True or False, but got"):
        hfaccel.optimize(object_to_optimize(), configure=wanted)


def object_to_optimize():
    import torch

    return torch.nn.Sequential(torch.nn.Linear(4, 4)).eval()


# Undone


UNDO = """
{before}
undone = configuration.undo()
after = state()
again = hfaccel.configure() if {again} else None
rows = {{row.subject: [row.applied, row.reason] for row in undone}}
print(json.dumps({{"rows": rows, "after": after, "again": again and state()["done"], "mask": sorted(mask)}}))
"""


@needs_arena
def test_what_can_be_put_back_is():
    found = run(UNDO.format(before="hfaccel.configure()", again=True))
    rows, after = found["rows"], found["after"]
    assert set(rows) == set(ALL)
    assert [subject for subject in ALL if not rows[subject][0]] == ["interop_threads", "forks"]
    assert after["threads"] == 0 and after["policy"] == "default" and after["bound"][-1] == found["mask"]
    assert after["done"] == [] and set(after["options"].values()) == {0, GLIBC_DEFAULT}
    assert found["again"] == ALL  # what undo() has left is not taken for the program's own


def test_threads_of_the_program_are_not_undone():
    before = "torch.set_num_threads(first + 1); hfaccel.configure()"
    found = run(UNDO.format(before=before, again=True))
    assert "threads" not in found["rows"] and found["after"]["threads"] == 1
    assert "threads" not in found["again"]


def test_nothing_done_is_nothing_to_undo():
    assert run(UNDO.format(before="", again=False))["rows"] == {}


CHILDREN = """
import json, os, subprocess, sys
from hfaccel.apply import hooks
child = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
def seen():
    return json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
full = os.sched_getaffinity(0)
hooks.give_children_affinity(full)
os.sched_setaffinity(0, {min(full)})
masks = [seen()]
hooks.give_children_affinity(None)
print(json.dumps([*masks, seen(), sorted(full)]))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is only one CPU")
def test_children_inherit_again_what_their_parent_has():
    done = subprocess.run([sys.executable, "-c", CHILDREN], capture_output=True, text=True, check=True)
    given, inherited, full = json.loads(done.stdout)
    assert given == full and inherited == full[:1]


MALLOC = """
import json, resource, torch, hfaccel
from hfaccel import configuration
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(40 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():  # MiB
    rows = dict(line.split(":") for line in open("/proc/self/status"))
    return int(rows["VmRSS"].split()[0]) >> 10
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(64, 64)).eval()
stock = faults()
hfaccel.optimize(model, configure={configure!r})
faults()
kept = faults()
before = resident()
configuration.undo()
print(json.dumps([stock, kept, before - resident()]))
"""


@needs_arena
def test_the_allocator_keeps_memory_and_gives_it_back_once_undone():
    """Page faults tell: glibc maps a block of 40 MiB afresh each time, unless it is told to keep it."""
    script = MALLOC.format(configure="auto")
    done = subprocess.run(
        [sys.executable, "-c", script], env=CLEAN, capture_output=True, text=True, check=True
    )
    stock, kept, given_back = json.loads(done.stdout)
    assert kept < 100 and stock > 1000 and given_back > 30


@needs_arena
def test_the_allocator_stays_where_nothing_is_asked_for():
    script = MALLOC.format(configure=False)
    done = subprocess.run(
        [sys.executable, "-c", script], env=CLEAN, capture_output=True, text=True, check=True
    )
    stock, kept, _ = json.loads(done.stdout)
    assert kept > 1000 and stock > 1000

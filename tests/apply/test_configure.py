"""configure(): what it plans, does and remembers; in this process with stand-ins, in others for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import replace

from hfaccel import configuration, native
from hfaccel.apply import openmp
from hfaccel.errors import UsageError
from hfaccel.host import read_host
from hfaccel.plan import KNOBS, cpu_budget
from hfaccel.plan.memory import usable_memory
from hfaccel.plan.profile import Profile, kind_of, write_profile

XEON = read_host(Path(__file__).parent.parent / "hosts/xeon-2-sockets.txt")  # CPUs 0-15, siblings 8 apart
APPLIED = {"affinity", "memory_policy", "allocator", "threads", "interop_threads"}
VARIABLES = {variable for knob in KNOBS for variable in knob.variables}
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in VARIABLES and name not in ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
}


class Arena:
    """Stands in for the extension: all is accepted and nothing changes."""

    def mallopt(self, option, value):
        return True

    def set_memory_policy(self, mode, nodes):
        pass

    def reserve_heap(self, size):
        return size

    def memory_policy(self):
        return "default", ()


@pytest.fixture
def machine(monkeypatch):
    """A stand-in for the machine, XEON at first: sched_setaffinity changes what is read of it."""
    state = {"facts": XEON, "hooks": [], "refuse": False}

    def set_affinity(pid, cpus):
        if state["refuse"]:
            raise PermissionError(1, "Operation not permitted")
        limits = replace(state["facts"].limits, affinity=tuple(sorted(cpus)))
        state["facts"] = replace(state["facts"], limits=limits)

    def hook(name):
        return lambda *arguments: state["hooks"].append((name, *arguments))

    threads = torch.get_num_threads()
    for variable in VARIABLES | {"LOCAL_RANK", "LOCAL_WORLD_SIZE"}:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(configuration, "_current", None)
    monkeypatch.setattr(configuration, "read_host", lambda: state["facts"])
    monkeypatch.setattr(native, "arena", Arena())
    monkeypatch.setattr(os, "sched_setaffinity", set_affinity)
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda number: None)
    monkeypatch.setattr(openmp, "threads_set", lambda: 0)  # other tests have set some
    for name in ("keep_affinity_over_import", "survive_forks", "give_children_affinity"):
        monkeypatch.setattr(configuration.hooks, name, hook(name))
    yield state
    torch.set_num_threads(threads)


@pytest.fixture
def configure(machine):
    return configuration.configure


def affinity(machine):
    return machine["facts"].limits.affinity


def ranks(monkeypatch, rank, size):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(size))


def test_the_process_is_set_up_by_the_rules(configure, machine):
    done = configure()
    assert affinity(machine) == tuple(range(8))
    assert torch.get_num_threads() == 8
    assert {outcome.subject for outcome in done.outcomes} == APPLIED
    assert done.facts is XEON and done.overrides == {}


def test_it_is_done_once(configure, machine):
    first = configure()
    hooks = machine["hooks"][:]
    assert configure() is first
    assert machine["hooks"] == hooks


def test_with_a_setting_it_is_done_again(configure, machine):
    first, second = configure(), configure(threads=1)
    assert second is not first and configure() is second
    assert torch.get_num_threads() == 1
    assert (second.plan["threads"].source, second.plan["threads"].value) == ("user", 1)
    assert affinity(machine) == tuple(range(8))


def test_settings_add_up(configure):
    configure(threads=2)
    configure(allocator="default")
    third = configure(threads=3)
    assert third.overrides == {"threads": 3, "allocator": "default"}
    assert torch.get_num_threads() == 3


def test_a_later_setting_changes_only_what_it_names(configure, machine, monkeypatch):
    configure(threads=3)
    torch.set_num_threads(1)  # by the program
    calls = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda *arguments: calls.append(arguments))
    later = configure(huge_pages="off")
    assert torch.get_num_threads() == 1 and not calls
    assert "threads" in [outcome.subject for outcome in later.outcomes if outcome.applied]
    configure(threads=3)
    assert torch.get_num_threads() == 3


def test_memory_that_is_retained_otherwise_is_applied(configure, monkeypatch):
    class Counting(Arena):
        reserved = []

        def reserve_heap(self, size):
            self.reserved.append(size)
            return size

    monkeypatch.setattr(native, "arena", Counting())
    configure(allocator="glibc")
    configure(threads=2)
    assert len(Counting.reserved) == 1
    configure(retained_memory="64M")
    assert len(Counting.reserved) == 2


@pytest.fixture
def profile(tmp_path):
    def write(facts=XEON, **tables):
        path = tmp_path / "profile.toml"
        path.write_text(write_profile(Profile(host=kind_of(facts)._asdict(), **tables)))
        return path

    return write


def test_a_profile_replaces_the_rules(configure, profile):
    done = configure(profile=profile(knobs={"threads": 3, "omp_wait_policy": "active"}))
    assert torch.get_num_threads() == 3
    assert done.plan["threads"].source == "profile"
    assert done.plan["omp_wait_policy"].reason == "hfaccel-run sets it: it takes effect only there"


def test_a_profile_stays_and_an_argument_wins_over_it(configure, profile):
    path = profile(knobs={"threads": 3, "affinity": "0-3"})
    configure(profile=path)
    assert configure(threads=2).plan["affinity"].value == (0, 1, 2, 3)
    assert torch.get_num_threads() == 2
    assert configure(profile=path).plan["threads"].source == "user"  # the mask has 4 cores by now


def test_what_is_harmless_follows_the_profile(configure, profile):
    configure(profile=profile(knobs={"threads": 3}))
    assert configuration.configure_for_model().plan["threads"].value == 3


def test_a_profile_of_another_host_changes_nothing(configure, machine, profile):
    other = read_host(Path(__file__).parent.parent / "hosts/graviton3.txt")
    with pytest.raises(UsageError, match="its architecture is aarch64, here x86_64"):
        configure(profile=profile(other, knobs={"threads": 3}))
    assert configuration._current is None


def test_a_profile_of_several_processes_is_for_the_launcher(configure, profile, machine, monkeypatch):
    path = profile(instances={"count": 2, "cores": 4}, knobs={"threads": 4})
    with pytest.raises(UsageError, match="use hfaccel-run --profile"):
        configure(profile=path)
    monkeypatch.setenv("HFACCEL_INSTANCES", "2")  # its half of the CPUs
    limits = replace(XEON.limits, affinity=(0, 1, 2, 3), parent_affinity=XEON.limits.affinity)
    machine["facts"] = replace(XEON, limits=limits)
    assert configure(profile=path).plan["threads"].value == 4


@pytest.mark.parametrize("value", [3, b"profile.toml", ["profile.toml"]])
def test_a_profile_is_a_path(configure, value):
    with pytest.raises(UsageError, match="a profile must be a path"):
        configure(profile=value)


@pytest.mark.parametrize("settings", [{"thread": 1}, {"threads": 0}, {"allocator": "nonsense"}])
def test_nonsense_is_refused_and_changes_nothing(configure, machine, settings):
    threads = torch.get_num_threads()
    with pytest.raises(UsageError, match="but got"):
        configure(**settings)
    assert configuration._current is None
    assert torch.get_num_threads() == threads
    assert machine == {"facts": XEON, "hooks": [], "refuse": False}


def test_nonsense_in_a_second_call_leaves_the_first(configure):
    first = configure(threads=2)
    with pytest.raises(UsageError):
        configure(threads="many")
    assert configure() is first


def test_the_environment_comes_before_the_rules(configure, machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    threads = torch.get_num_threads()
    done = configure()
    assert done.plan["threads"].source == "environment"
    assert torch.get_num_threads() == threads
    assert configure(threads=2).plan["threads"].source == "user"


def test_a_configuration_is_plain_data(configure):
    described = json.loads(json.dumps(configure(threads=1).to_dict()))
    assert set(described) == {"facts", "plan", "applied"}
    assert {row["subject"] for row in described["applied"]} == APPLIED


def test_a_memory_policy_that_the_program_or_numactl_has_set_stays(configure, machine, monkeypatch):
    machine["facts"] = replace(XEON, limits=replace(XEON.limits, affinity=(0, 1)))  # on one node of two
    monkeypatch.setattr(native.arena, "memory_policy", lambda: ("bind", (0, 1)))
    choice = configure().plan["memory_policy"]
    assert (choice.value, choice.source) == (None, "program")
    assert choice.reason == "memory policy bind:0,1 is the program's own and kept"


# The hooks that go with it


def test_children_get_the_mask_that_the_process_had(configure, machine):
    configure()
    assert machine["hooks"] == [
        ("keep_affinity_over_import",),
        ("survive_forks",),
        ("give_children_affinity", set(range(16))),
    ]


def test_who_asks_for_an_affinity_has_children_of_that_affinity(configure, machine):
    configure(affinity="0-3")
    assert [name for name, *_ in machine["hooks"]] == ["keep_affinity_over_import", "survive_forks"]


def test_nothing_bound_is_nothing_to_undo(configure, machine, monkeypatch):
    monkeypatch.setenv("GOMP_CPU_AFFINITY", "0-7")
    configure()
    assert [name for name, *_ in machine["hooks"]] == ["keep_affinity_over_import", "survive_forks"]


def test_what_the_system_refuses_is_an_outcome(configure, machine):
    machine["refuse"] = True
    (outcome,) = [outcome for outcome in configure().outcomes if outcome.subject == "affinity"]
    assert not outcome.applied and "Operation not permitted" in outcome.reason


# Ranks


def test_a_rank_has_its_part_and_so_have_its_children(configure, machine, monkeypatch):
    ranks(monkeypatch, 1, 2)
    done = configure()
    assert affinity(machine) == (4, 5, 6, 7)
    assert torch.get_num_threads() == 4
    assert done.plan["affinity"].reason == "instance 1 of 2: 4 cores of node 1"
    assert [name for name, *_ in machine["hooks"]] == ["keep_affinity_over_import", "survive_forks"]


def test_a_rank_keeps_its_part_when_something_else_is_set(configure, machine, monkeypatch):
    """The second call reads a mask that is smaller than the parent's: ours, not that of a launcher."""
    ranks(monkeypatch, 1, 2)
    limits = replace(XEON.limits, cpu_quota=4.0, parent_affinity=XEON.limits.affinity)
    machine["facts"] = replace(XEON, limits=limits)
    configure()
    assert torch.get_num_threads() == 2  # the quota is for both ranks
    configure(huge_pages="off")
    assert affinity(machine) == (4, 5, 6, 7)
    assert torch.get_num_threads() == 2


def test_a_rank_that_is_bound_already_stays_there(configure, machine, monkeypatch):
    ranks(monkeypatch, 0, 2)
    limits = replace(XEON.limits, affinity=(2, 3), parent_affinity=XEON.limits.affinity)
    machine["facts"] = replace(XEON, limits=limits)
    assert configure().plan["affinity"].value is None
    assert affinity(machine) == (2, 3)
    assert torch.get_num_threads() == 2


# In processes of their own

MASK = sorted(os.sched_getaffinity(0))
BUDGET = cpu_budget(read_host())
needs_two_cores = pytest.mark.skipif(len(BUDGET.cores) < 2, reason="there is only one core")


def start(script, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**CLEAN, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(process):
    output, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return json.loads(output.splitlines()[-1])


REAL = """
import json, os
import hfaccel
from hfaccel import native
def state(done):
    import torch
    policy = native.arena and native.arena.memory_policy()
    threads = [torch.get_num_threads(), torch.get_num_interop_threads()]
    applied = {outcome.subject: outcome.reason for outcome in done.outcomes if outcome.applied}
    return {"mask": sorted(os.sched_getaffinity(0)), "threads": threads, "policy": policy, "applied": applied}
first = state(hfaccel.configure(memory_policy="preferred:0", threads=2))
second = state(hfaccel.configure(affinity=[min(os.sched_getaffinity(0))], memory_policy="interleave:0"))
third = state(hfaccel.configure(interop_threads=5))
import torch
torch.jit.wait(torch.jit.fork(torch.relu, torch.ones(3)))
fourth = hfaccel.configure(interop_threads=7)
refused = {outcome.subject: outcome.reason for outcome in fourth.outcomes if not outcome.applied}
print(json.dumps({"states": [first, second, third, state(fourth)], "refused": refused}))
"""


@pytest.fixture(scope="module")
def real():
    return answer(start(REAL))


def test_threads_are_set_and_stay(real):
    assert [state["threads"] for state in real["states"]][:2] == [[2, 1], [2, 1]]


def test_interop_threads_can_be_set_once_and_then_a_reason_is_given(real):
    assert real["states"][-1]["threads"][1] == 1
    assert real["refused"]["interop_threads"] == "torch keeps 1: they are in use already"


@pytest.mark.skipif(not Path("/sys/devices/system/node/node0").exists(), reason="no NUMA nodes here")
@pytest.mark.skipif(native.arena is None, reason="the native part is missing")
def test_the_memory_policy_is_the_kernels(real):
    policies = [state["policy"] for state in real["states"]]
    assert policies == [["preferred", [0]], *[["interleave", [0]]] * 3]
    assert real["states"][1]["applied"]["memory_policy"] == "new pages: interleave:0"


def test_the_affinity_is_the_kernels(real):
    assert [state["mask"] for state in real["states"]][1:] == [MASK[:1]] * 3


WORKERS = """
import json, multiprocessing, sys

def work(together, queue):
    together.wait()
    import hfaccel
    queue.put(hfaccel.configure().plan["retained_memory"].value)
    together.wait()

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    together, queue = context.Barrier(8), context.SimpleQueue()
    workers = [context.Process(target=work, args=(together, queue)) for _ in range(8)]
    for worker in workers:
        worker.start()
    values = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    print(json.dumps(values))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")
def test_spawned_workers_retain_together_what_one_process_may(tmp_path):
    """Each may keep an eighth of the memory otherwise: all of it."""
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, str(script)], env=CLEAN, capture_output=True, text=True, check=True
    )
    values = json.loads(done.stdout.splitlines()[-1])
    assert len(set(values)) == 1
    assert sum(values) <= max(8 << 20, usable_memory(read_host()) // 8)


PROGRAM = """
import json, os
import torch
torch.set_num_threads({number})
import hfaccel
def state(done):
    return [torch.get_num_threads(), done.plan["threads"].source, done.plan["threads"].reason]
states = [state(hfaccel.configure()), state(hfaccel.configure(huge_pages="off"))]
model = hfaccel.optimize(torch.nn.Sequential(torch.nn.Linear(64, 64)).eval())
reported = [row.reason for row in hfaccel.report(model).configuration.outcomes if row.subject == "threads"]
asked = state(hfaccel.configure(threads=3))
print(json.dumps({{"states": states, "reported": reported, "asked": asked}}))
"""


@pytest.mark.parametrize("number", [1, BUDGET.threads, BUDGET.threads + 1])
def test_threads_that_the_program_has_set_stay(number):
    """They win over the rule, also where the number is the one that torch begins with."""
    found = answer(start(PROGRAM.format(number=number)))
    reason = f"torch.set_num_threads({number}) is the program's own and kept"
    assert found["states"] == [[number, "program", reason]] * 2
    assert found["reported"] == [reason]
    assert found["asked"][:2] == [3, "user"]


def test_mkls_variable_counts_as_openmps_does():
    """torch begins with the number that it names."""
    script = """
import json, torch, hfaccel
choice = hfaccel.configure().plan["threads"]
print(json.dumps([torch.get_num_threads(), choice.source, choice.reason]))
"""
    found = answer(start(script, MKL_NUM_THREADS="1"))
    assert found == [1, "environment", "MKL_NUM_THREADS=1 is set and kept"]


@needs_two_cores
def test_ranks_share_this_machine():
    script = """
import json, os, subprocess, sys
import hfaccel
hfaccel.configure()
import torch
child = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
seen = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
print(json.dumps([sorted(os.sched_getaffinity(0)), torch.get_num_threads(), seen]))
"""
    started = [start(script, LOCAL_RANK=rank, LOCAL_WORLD_SIZE="2") for rank in "01"]
    (first, threads, children), (second, others, _) = map(answer, started)
    half = len(BUDGET.cores) // 2
    assert len(first) == len(second) == half and not set(first) & set(second)
    assert threads == others and 1 <= threads <= half
    assert children == first


@pytest.mark.skipif(len(MASK) < 2, reason="there is only one CPU")
def test_an_affinity_asked_for_survives_an_openmp_that_binds():
    """configure() binds, then imports torch, whose runtime binds too, and the hook restores: our mask."""
    script = """
import json, os
import hfaccel
hfaccel.configure(affinity=[max(os.sched_getaffinity(0))])
print(json.dumps(sorted(os.sched_getaffinity(0))))
"""
    assert answer(start(script, OMP_PROC_BIND="true")) == MASK[-1:]

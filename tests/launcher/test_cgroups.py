"""hfaccel-run in a real control group (version 1), which the test makes and removes."""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path

import pytest
from launching import CPUS, RUN, needs_two_cores, start

ROOT = Path("/sys/fs/cgroup")
writable = os.access(ROOT / "cpu" / "cgroup.procs", os.W_OK) and os.geteuid() == 0
pytestmark = pytest.mark.skipif(not writable, reason="no control groups of version 1 that may be changed")


@pytest.fixture
def group():
    """Makes groups: `group("cpu", {file: text})` is the folder of a new one."""
    made = []

    def make(controller, files):
        folder = ROOT / controller / f"hfaccel-test-{uuid.uuid4().hex}"
        folder.mkdir()
        made.append(folder)
        for name, text in files.items():
            (folder / name).write_text(text)
        return folder

    yield make
    for folder in made:
        folder.rmdir()


def within(*folders, command, **options):
    """Run a command in these groups."""
    enter = "".join(f"echo $$ > {folder}/cgroup.procs && " for folder in folders)
    return start(["sh", "-c", f'{enter} exec "$@"', "sh", *command], **options)


def quota(cpus: float, period: int = 20000) -> dict[str, str]:
    # The most shares there are: what else runs on this machine must not keep a group from its quota.
    return {
        "cpu.cfs_period_us": str(period),
        "cpu.cfs_quota_us": str(int(cpus * period)),
        "cpu.shares": "262144",
    }


SHOW = """
import json, os
names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
print(json.dumps([sorted(os.sched_getaffinity(0)), *map(os.environ.get, names)]))
"""


@needs_two_cores
def test_a_quota_of_one_cpu_gives_one_thread_that_does_not_spin(group):
    done = within(group("cpu", quota(1)), command=[RUN, "-c", SHOW])
    assert json.loads(done.stdout) == [CPUS, "1", "passive"], "the mask stays as it is"
    assert done.stderr == b""


@needs_two_cores
def test_a_quota_of_a_group_above_counts_too(group):
    folder = group("cpu", quota(1.5)) / "inside"
    folder.mkdir()
    try:
        done = within(folder, command=[RUN, "-c", SHOW])
    finally:
        folder.rmdir()
    assert json.loads(done.stdout) == [CPUS, "1", "passive"]


def test_a_quota_above_what_there_is_changes_nothing(group):
    done = within(group("cpu", quota(len(CPUS) + 1)), command=[RUN, "-c", SHOW])
    assert done.stdout == start([RUN, "-c", SHOW]).stdout


# Its pauses let the threads of a pool spin, as the Python between two layers does.
MULTIPLIES = """
import sys, torch
def throttled():
    lines = open(sys.argv[1] + "/cpu.stat").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("nr_throttled"))
matrix = torch.ones(384, 384)
torch.mm(matrix, matrix)
before = throttled()
for _ in range(400):
    torch.mm(matrix, matrix)
    sum(range(20000))
print(torch.get_num_threads(), throttled() - before)
"""


@needs_two_cores
def test_under_a_quota_the_program_is_throttled_much_less(group):
    """Counted by the kernel: the periods in which the group had used up its time."""
    folder = group("cpu", quota(1))
    counts = []
    for command in ([sys.executable], [RUN]):
        done = within(folder, command=[*command, "-c", MULTIPLIES, str(folder)])
        assert done.returncode == 0, done.stderr.decode()
        counts.append(tuple(map(int, done.stdout.split())))
    (plain_threads, plain), (threads, launched) = counts
    assert plain_threads > 1 == threads
    assert plain >= 10 and launched * 4 <= plain, (plain, launched)


def test_a_memory_limit_is_shown(group):
    limit = 1 << 30
    folder = group("memory", {"memory.limit_in_bytes": str(limit)})
    done = within(folder, command=[RUN.removesuffix("-run"), "info", "--json"])
    described = json.loads(done.stdout)
    assert described["facts"]["limits"]["memory_limit"] == limit
    plan = {choice["knob"]: choice for choice in described["plan"]}
    assert plan["primitive_cache"]["value"] == 128 and "1.0 GiB" in plan["primitive_cache"]["reason"]
    assert "1 GiB" in within(folder, command=[RUN.removesuffix("-run"), "info"]).stdout.decode()


def test_a_quota_and_what_it_cost_are_shown(group):
    folder = group("cpu", quota(0.5))
    done = within(folder, command=[RUN.removesuffix("-run"), "info", "--json"])
    limits = json.loads(done.stdout)["facts"]["limits"]
    assert limits["cpu_quota"] == 0.5
    assert isinstance(limits["throttled"], int)

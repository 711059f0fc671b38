"""How many CPUs this process can use. `os.cpu_count` ignores CPU quotas and counts hyper-threads."""

from __future__ import annotations

import math
from typing import NamedTuple

from hfaccel.host import HostFacts

Cores = tuple[tuple[int, ...], ...]  # for each core, its CPU numbers that may be used


class Budget(NamedTuple):
    threads: int  # at least 1
    cores: tuple[int, ...]  # one CPU number for each usable core in the affinity mask, ascending
    limited_by_quota: bool
    reason: str


def cpu_budget(facts: HostFacts) -> Budget:
    """min(physical cores in the affinity mask, floor(quota)), at least 1."""
    mask = facts.limits.affinity
    usable = usable_cores(facts, mask)
    cores = tuple(sorted(cpus[0] for cpus in usable)) or (0,)
    left_out = len(facts.topology.cores(mask)) - len(usable)
    allowed = quota_threads(facts, len(cores))
    if allowed < len(cores):
        text = f"the CPU quota of {facts.limits.cpu_quota:g} allows {allowed} of {len(cores)} cores"
        return Budget(allowed, cores, True, text)
    text = f"{len(cores)} physical cores in the affinity mask of {len(mask)} CPUs"
    if left_out:
        text += f"; {left_out} efficiency cores left out, because all threads wait for the slowest"
    return Budget(len(cores), cores, False, text)


def quota_threads(facts: HostFacts, cores: int, instances: int = 1) -> int:
    """Threads that the CPU quota allows each of several equal instances, from 1 to `cores`."""
    quota = facts.limits.cpu_quota
    return cores if quota is None else max(1, min(cores, math.floor(quota / instances)))


def usable_cores(facts: HostFacts, mask: tuple[int, ...]) -> Cores:
    """The cores in the mask, those of one node together; of a hybrid processor, the large cores."""
    small = {entry.cpu for entry in facts.topology.cpus if entry.efficient}
    cores = facts.topology.cores(mask)
    large = tuple(cpus for cpus in cores if cpus[0] not in small)
    return large or cores

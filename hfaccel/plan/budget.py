"""How many CPUs this process can really use. `os.cpu_count` knows neither quota nor siblings."""

from __future__ import annotations

import math
from typing import NamedTuple

from hfaccel.host import HostFacts


class Budget(NamedTuple):
    threads: int  # at least 1
    cores: tuple[int, ...]  # one CPU number for each physical core in the affinity mask
    limited_by_quota: bool
    reason: str


def cpu_budget(facts: HostFacts) -> Budget:
    """min(physical cores in the affinity mask, floor(quota)), at least 1."""
    cores = facts.topology.one_per_core(facts.limits.affinity) or (0,)
    quota = facts.limits.cpu_quota
    allowed = len(cores) if quota is None else max(1, math.floor(quota))
    if quota is not None and quota < len(cores):
        text = f"the CPU quota of {quota:g} allows {allowed} of {len(cores)} cores"
        return Budget(allowed, cores, True, text)
    text = f"{len(cores)} physical cores in the affinity mask of {len(facts.limits.affinity)} CPUs"
    return Budget(len(cores), cores, False, text)

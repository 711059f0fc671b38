"""Machines without timing: hosts made up for the space, and a surface of costs for the search.

The surface has the shape of published measurements of BERT on servers with many cores: a serial part that
limits one instance, memory bandwidth that all share, and factors for allocators, OpenMP, waiting and huge
pages, of which some grow with the threads. Which allocator or runtime is good differs from seed to seed, so
that no order of the axes is lucky.
"""

from __future__ import annotations

import math
import random
from contextlib import contextmanager
from pathlib import Path

from hfaccel.host import Library, LogicalCpu, read_host
from hfaccel.tune.trials import TrialFailed

HOSTS = Path(__file__).parent.parent / "hosts"
XEON = read_host(HOSTS / "xeon-2-sockets.txt")
ALLOCATORS = ("mimalloc", "jemalloc", "tcmalloc")


def host(cores, nodes=1, intel=True, quota=None, thp="madvise", allocators=ALLOCATORS, libc="glibc"):
    """A host with these cores, evenly on the nodes, and no hyper-threads."""
    cpus = tuple(LogicalCpu(cpu, cpu, 0, cpu * nodes // cores) for cpu in range(cores))
    numbers = tuple(range(cores))
    pages = XEON.memory._replace(thp=thp, thp_disabled=False, thp_sizes=())
    return XEON._replace(
        topology=XEON.topology._replace(cpus=cpus),
        limits=XEON.limits._replace(affinity=numbers, parent_affinity=numbers, cpuset=None, cpu_quota=quota),
        memory=pages,
        allocators=tuple(Library(name, f"/lib/lib{name}.so") for name in allocators),
        openmp=(Library("intel", "/lib/libiomp5.so"),) if intel else (),
        libc=libc,
    )


class Surface:
    """What a setting costs: less is better."""

    def __init__(self, seed, space, throughput):
        chance = random.Random(seed)
        self.throughput, self.cores = throughput, space.cores
        self.factors = {
            axis.name: dict(
                zip(axis.values, _shuffled(chance, LOSSES[axis.name], len(axis.values)), strict=True)
            )
            for axis in space.axes
            if axis.name in LOSSES
        }
        self.serial = chance.choice([0.005, 0.02, 0.05])
        self.caches, self.bandwidth = chance.choice([0.05, 0.15, 0.4]), chance.choice([0, 0.15, 0.4])

    def __call__(self, setting):
        threads, instances = setting.threads, setting.instances
        depth = math.log2(threads)
        across = 0.8 if threads > self.cores // 2 else 1
        speed = threads / (1 + self.serial * (threads - 1)) * across
        cost = 1 + self.bandwidth * max(0, instances * threads / self.cores - 0.5)
        cost *= 1 + self.caches * instances / self.cores
        for name, grows in GROWS.items():
            share = 1 - grows + grows * min(1, depth / 6)
            cost *= 1 + self.factors[name][getattr(setting, name)] * share
        return cost / speed / (instances if self.throughput else 1)


LOSSES = {
    "allocator": (0, 0.03, 0.06, 0.1, 0.16),
    "omp_runtime": (0, 0.05),
    "wait_policy": (0, 0.04, 0.12),
    "huge_pages": (0, 0.06),
}
GROWS = {"allocator": 0.4, "omp_runtime": 0.5, "wait_policy": 0.9, "huge_pages": 0}  # with the threads


def _shuffled(chance, losses, count):
    return chance.sample(losses, len(losses))[:count]


class Simulated:
    """A machine that answers by a function of the setting, in seconds, with noise of a few percent."""

    items = 1

    def __init__(self, cost, noise=0.02, seed=0, failing=lambda setting: ""):
        self.cost, self.noise, self.failing = cost, noise, failing
        self.chance = random.Random(seed)
        self.opened, self.sampled = [], 0

    @contextmanager
    def open(self, setting):
        self.opened.append(setting)
        if reason := self.failing(setting):
            raise TrialFailed(reason)
        yield self
        self.setting = None

    def sample(self):
        self.sampled += 1
        seconds = self.cost(self.opened[-1]) * math.exp(self.chance.gauss(0, self.noise))
        return {"seconds": seconds, "calls": [seconds]}

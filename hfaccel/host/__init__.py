"""Facts: what this machine and this container allow. Reads, never changes, never imports torch."""

from __future__ import annotations

from pathlib import Path

from hfaccel.host.cpu import read_affinity, read_processor, read_topology
from hfaccel.host.facts import (
    HostFacts,
    Library,
    Limits,
    LogicalCpu,
    MemoryFacts,
    Processor,
    Topology,
)
from hfaccel.host.libraries import find_allocators, preload_problem, read_libc, read_mapped
from hfaccel.host.limits import read_cpu_quota, read_memory_limit
from hfaccel.host.memory import read_memory
from hfaccel.host.tree import Tree, parse_number_list

__all__ = [
    "HostFacts",
    "Library",
    "Limits",
    "LogicalCpu",
    "MemoryFacts",
    "Processor",
    "Topology",
    "parse_number_list",
    "preload_problem",
    "read_host",
]


def read_host(root: str | Path = "/") -> HostFacts:
    """Read the facts of the host whose files lie below `root`: "/" is this machine.

    Never raises for a missing, unreadable or odd file: the fact takes its documented neutral value and
    `HostFacts.problems` has a line about it.
    """
    tree = Tree(root)
    topology = read_topology(tree)
    mapped = read_mapped(tree)
    return HostFacts(
        processor=read_processor(tree),
        topology=topology,
        limits=Limits(
            affinity=read_affinity(tree, topology),
            cpu_quota=read_cpu_quota(tree),
            memory_limit=read_memory_limit(tree),
        ),
        memory=read_memory(tree),
        allocators=find_allocators(tree),
        libc=read_libc(mapped),
        mapped=mapped,
        problems=tuple(tree.problems),
    )

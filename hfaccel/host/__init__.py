"""Facts: what this machine and this container allow. Reads, never changes, never imports torch."""

from __future__ import annotations

from pathlib import Path

from hfaccel.host.facts import (
    Cache,
    HostFacts,
    HugePages,
    Library,
    Limits,
    LogicalCpu,
    MemoryFacts,
    Node,
    Processor,
    Software,
    Topology,
)
from hfaccel.host.kernel_sets import KERNEL_SETS, MAX_ISA, cap_problem, module_of, usable_sets
from hfaccel.host.libraries import (
    ALLOCATORS,
    OPENMP_RUNTIMES,
    find_libraries,
    preload_problem,
    read_libc,
    read_mapped,
)
from hfaccel.host.limits import read_limits, read_throttled_ms
from hfaccel.host.memory import read_memory, thp_mode, thp_problem
from hfaccel.host.processor import read_processor
from hfaccel.host.software import read_software
from hfaccel.host.topology import read_topology
from hfaccel.host.tree import Tree, capture, format_number_list, is_capture, is_number, parse_number_list

__all__ = [
    "ALLOCATORS",
    "KERNEL_SETS",
    "MAX_ISA",
    "Cache",
    "HostFacts",
    "HugePages",
    "Library",
    "Limits",
    "LogicalCpu",
    "MemoryFacts",
    "Node",
    "Processor",
    "Software",
    "Topology",
    "Tree",
    "cap_problem",
    "capture_host",
    "format_number_list",
    "is_capture",
    "is_number",
    "module_of",
    "parse_number_list",
    "preload_problem",
    "read_host",
    "read_memory",
    "read_throttled_ms",
    "read_tree",
    "thp_mode",
    "thp_problem",
    "usable_sets",
]


def read_host(root: str | Path = "/") -> HostFacts:
    """Read the facts of a host. `root`: "/" for this machine; a folder or a captured file for another host.

    Never raises for a missing, unreadable or odd file: the fact gets its documented neutral value, and
    `HostFacts.problems` a line about the file.
    """
    return read_tree(Tree(root))


def capture_host() -> str:
    """The files of this machine from which its facts come, as one text that read_host can read."""
    tree = Tree("/")
    read_tree(tree)
    return capture(tree)


def read_tree(tree: Tree) -> HostFacts:
    """The facts of a host; `tree` remembers what was read."""
    topology = read_topology(tree)
    mapped = read_mapped(tree)
    libc, libc_version = read_libc(tree, mapped)
    return HostFacts(
        kernel=tree.text("/proc/sys/kernel/osrelease") or "",
        processor=read_processor(tree),
        topology=topology,
        limits=read_limits(tree, topology),
        memory=read_memory(tree),
        allocators=find_libraries(tree, ALLOCATORS),
        openmp=find_libraries(tree, OPENMP_RUNTIMES),
        libc=libc,
        libc_version=libc_version,
        mapped=mapped,
        software=read_software(tree),
        problems=tuple(tree.problems),
    )

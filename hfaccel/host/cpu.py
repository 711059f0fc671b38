"""Processor, topology and the CPUs that this process may use."""

from __future__ import annotations

import os

from hfaccel.host.facts import LogicalCpu, Processor, Topology
from hfaccel.host.tree import Tree, parse_number_list

ISA_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "amx_fp16",
)


def read_processor(tree: Tree) -> Processor:
    fields: dict[str, str] = {}
    for line in (tree.text("/proc/cpuinfo") or "").splitlines():
        if not line.strip() and fields:
            break  # the first processor describes all
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    flags = set(fields.get("flags", "").split())
    return Processor(
        vendor=fields.get("vendor_id", ""),
        model_name=fields.get("model name", ""),
        isa=tuple(flag for flag in ISA_FLAGS if flag in flags),
    )


def read_topology(tree: Tree) -> Topology:
    """Online CPUs. Where /sys has no topology every CPU counts as a core of its own."""
    online = tree.numbers("/sys/devices/system/cpu/online")
    if not online:
        online = tuple(range(_count_processors(tree)))
        tree.problem("/sys/devices/system/cpu/online", f"missing; assuming CPUs 0 to {len(online) - 1}")
    nodes = _nodes(tree)
    return Topology(tuple(_logical_cpu(tree, cpu, nodes.get(cpu, 0)) for cpu in online))


def _logical_cpu(tree: Tree, cpu: int, node: int) -> LogicalCpu:
    base = f"/sys/devices/system/cpu/cpu{cpu}/topology"
    siblings = tree.numbers(f"{base}/thread_siblings_list") or tree.numbers(f"{base}/core_cpus_list")
    package = tree.integer(f"{base}/physical_package_id")
    # The lowest sibling names the core: unlike core_id, that is unique and right on every VM.
    core = min(siblings) if siblings else cpu
    return LogicalCpu(cpu, core, -1 if package is None else package, node)


def _nodes(tree: Tree) -> dict[int, int]:
    """CPU number -> NUMA node."""
    nodes: dict[int, int] = {}
    for folder in tree.children("/sys/devices/system/node", "node[0-9]*"):
        number = folder.name.removeprefix("node")
        if not number.isdecimal():
            continue
        for cpu in tree.numbers(f"/sys/devices/system/node/{folder.name}/cpulist") or ():
            nodes[cpu] = int(number)
    return nodes


def _count_processors(tree: Tree) -> int:
    lines = (tree.text("/proc/cpuinfo") or "").splitlines()
    listed = sum(line.startswith("processor") for line in lines)
    return listed or ((os.cpu_count() or 1) if tree.is_live else 1)


def read_affinity(tree: Tree, topology: Topology) -> tuple[int, ...]:
    """The CPUs in this process's affinity mask, as the kernel shows it in /proc."""
    online = tuple(entry.cpu for entry in topology.cpus)
    known = frozenset(online)
    for line in (tree.text("/proc/self/status") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "Cpus_allowed_list":
            try:
                allowed = parse_number_list(value)
            except ValueError as error:
                tree.problem("/proc/self/status", str(error))
                break
            return tuple(cpu for cpu in allowed if cpu in known) or online
    if tree.is_live:
        return tuple(sorted(os.sched_getaffinity(0)))
    return online

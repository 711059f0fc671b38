"""CPUs, cores, sockets, NUMA nodes and caches, and the CPUs that this process may use."""

from __future__ import annotations

import os

from hfaccel.host.facts import Cache, HugePages, LogicalCpu, Node, Topology
from hfaccel.host.processor import cpuinfo
from hfaccel.host.tree import Tree, is_number, parse_number_list
from hfaccel.portable import affinity

CPUS = "/sys/devices/system/cpu"
NODES = "/sys/devices/system/node"
LOCAL, REMOTE = 10, 20  # the kernel's distances where the firmware gives none
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def read_topology(tree: Tree) -> Topology:
    """Where /sys has no topology, every online CPU counts as a core of its own."""
    online = tree.numbers(f"{CPUS}/online")
    if not online:
        online = tuple(range(_count_processors(tree)))
        tree.problem(f"{CPUS}/online", f"missing; assuming CPUs 0 to {len(online) - 1}")
    nodes = _nodes(tree, online)
    node_of = {cpu: node.number for node in nodes for cpu in node.cpus}
    cores = _cores(tree, online)
    packages = _packages(tree, online)
    efficient = set(_efficient(tree))
    return Topology(
        cpus=tuple(
            LogicalCpu(cpu, cores[cpu], packages[cpu], node_of.get(cpu, nodes[0].number), cpu in efficient)
            for cpu in online
        ),
        offline=tuple(sorted(set(tree.numbers(f"{CPUS}/present") or ()) - set(online))),
        nodes=nodes,
        caches=_caches(tree, online[0]),
        governor=tree.text(f"{CPUS}/cpu{online[0]}/cpufreq/scaling_governor") or "",
    )


def _cores(tree: Tree, online: tuple[int, ...]) -> dict[int, int]:
    """CPU number -> core, named by its lowest CPU: unlike core_id, that is unique, and right on VMs."""
    cores: dict[int, int] = {}
    for cpu in online:
        if cpu in cores:
            continue  # known from a sibling, which saves half of the reads
        base = f"{CPUS}/cpu{cpu}/topology"
        siblings = tree.numbers(f"{base}/thread_siblings_list") or tree.numbers(f"{base}/core_cpus_list")
        core = min(siblings) if siblings else cpu
        for sibling in {cpu, *(siblings or ())}:
            cores.setdefault(sibling, core)
    return cores


def _packages(tree: Tree, online: tuple[int, ...]) -> dict[int, int]:
    """CPU number -> socket; -1 where unknown."""
    packages: dict[int, int] = {}
    for cpu in online:
        if cpu in packages:
            continue
        base = f"{CPUS}/cpu{cpu}/topology"
        package = tree.integer(f"{base}/physical_package_id")
        for neighbour in {cpu, *(tree.numbers(f"{base}/core_siblings_list") or ())}:
            packages.setdefault(neighbour, -1 if package is None else package)
    return packages


def _efficient(tree: Tree) -> tuple[int, ...]:
    """The small cores of a hybrid processor; none where all cores are small."""
    small = tree.numbers("/sys/devices/cpu_atom/cpus")
    return small or () if tree.numbers("/sys/devices/cpu_core/cpus") else ()


def _nodes(tree: Tree, online: tuple[int, ...]) -> tuple[Node, ...]:
    numbers = (name.removeprefix("node") for name in tree.names(NODES, "node*"))
    nodes = tuple(_node(tree, number) for number in sorted(int(n) for n in numbers if is_number(n)))
    if not any(node.cpus for node in nodes):
        return (Node(0, online, 0, (LOCAL,), ()),)
    return tuple(node._replace(distances=_distances(node, nodes)) for node in nodes)


def _node(tree: Tree, number: int) -> Node:
    base = f"{NODES}/node{number}"
    distances = (tree.text(f"{base}/distance") or "").split()
    return Node(
        number=number,
        cpus=tree.numbers(f"{base}/cpulist") or (),
        memory=(tree.number_after(f"{base}/meminfo", "MemTotal:") or 0) * 1024,
        distances=tuple(int(text) for text in distances if is_number(text)),
        huge_pages=_huge_pages(tree, f"{base}/hugepages"),
    )


def _distances(node: Node, nodes: tuple[Node, ...]) -> tuple[int, ...]:
    if len(node.distances) == len(nodes):
        return node.distances
    return tuple(LOCAL if other.number == node.number else REMOTE for other in nodes)


def _huge_pages(tree: Tree, folder: str) -> tuple[HugePages, ...]:
    pools = []
    for name in tree.names(folder, "hugepages-*kB"):
        size = name.removeprefix("hugepages-").removesuffix("kB")
        total = tree.integer(f"{folder}/{name}/nr_hugepages")
        if is_number(size) and total:
            free = tree.integer(f"{folder}/{name}/free_hugepages") or 0
            pools.append(HugePages(int(size) * 1024, total, free))
    return tuple(sorted(pools))


def _caches(tree: Tree, cpu: int) -> tuple[Cache, ...]:
    caches = []
    base = f"{CPUS}/cpu{cpu}/cache"
    for name in tree.names(base, "index*"):
        level, size = tree.integer(f"{base}/{name}/level"), tree.text(f"{base}/{name}/size") or ""
        number, unit = size[:-1], UNITS.get(size[-1:])
        if level is None or unit is None or not is_number(number):
            continue
        kind = tree.text(f"{base}/{name}/type") or ""
        shared = tree.numbers(f"{base}/{name}/shared_cpu_list") or (cpu,)
        caches.append(Cache(level, kind, int(number) * unit, shared))
    return tuple(sorted(caches))


def _count_processors(tree: Tree) -> int:
    listed = sum(line.startswith("processor") for line in cpuinfo(tree))
    return listed or ((os.cpu_count() or 1) if tree.is_live else 1)


def read_affinity(tree: Tree, topology: Topology) -> tuple[int, ...]:
    """The CPUs in this process's affinity mask, as the kernel shows it in /proc."""
    online = tuple(entry.cpu for entry in topology.cpus)
    allowed = status_list(tree, "/proc/self/status", "Cpus_allowed_list")
    if allowed is None and tree.is_live:
        return tuple(sorted(affinity()))
    known = frozenset(online)
    return tuple(cpu for cpu in allowed or () if cpu in known) or online


def status_list(tree: Tree, path: str, field: str) -> tuple[int, ...] | None:
    """A field of a file such as /proc/self/status that lists numbers; None where it is missing."""
    for line in tree.lines(path, kept_status):
        name, _, value = line.partition(":")
        if name == field:
            try:
                return parse_number_list(value)
            except ValueError as error:
                tree.problem(path, str(error))
    return None


def kept_status(line: str) -> bool:
    """Whether facts come from this line of a status file; a capture leaves out the others."""
    return line.startswith(("Cpus_allowed_list:", "Mems_allowed_list:", "THP_enabled:"))

"""Which CPUs each of several instances gets. Pure: facts + request -> slots that share no core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from hfaccel.errors import UsageError
from hfaccel.host import HostFacts, format_number_list, is_number
from hfaccel.plan.budget import Cores, quota_threads, usable_cores

Mode = Literal["latency", "throughput"]
INSTANCE, INSTANCES = (
    "HFACCEL_INSTANCE",
    "HFACCEL_INSTANCES",
)  # variables: the number of this one, and of all
LATENCY_CORES = 4  # of an instance in latency mode, as in run_cpu and ipexrun
# The number of this process on this machine, and how many there are: by torchrun, Open MPI and Intel MPI.
RANKS = (
    ("LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


class Request(NamedTuple):
    """What the user asks for; None leaves the choice to the rules."""

    instances: int | None = None
    cores_per_instance: int | None = None
    nodes: tuple[int, ...] | None = None  # NUMA nodes to stay on
    cpus: tuple[int, ...] | None = None  # CPU numbers to stay on
    siblings: bool = False  # use every CPU of a core, not one
    mode: Mode | None = None


class Slot(NamedTuple):
    """The place of one instance."""

    instance: int  # from 0
    instances: int
    cpus: tuple[int, ...]
    threads: int
    nodes: tuple[int, ...]
    reason: str
    asked: bool = True  # for by the user; False for the ranks that torchrun or mpirun started


def place(facts: HostFacts, request: Request) -> tuple[Slot, ...]:
    """A slot for each instance; no slots where the request is empty.

    No two slots share a core. An instance stays on one NUMA node where its size allows that. Raises
    UsageError for a request that exceeds the machine or the container.
    """
    if request == Request():
        return ()
    cores = _cores(facts, request)
    groups = _by_node(facts, cores)
    parts = _parts(groups, request, quota_threads(facts, len(cores)))
    return tuple(_slot(facts, request, index, parts) for index in range(len(parts)))


MANY_CORES = 8


def advice(facts: HostFacts, request: Request) -> str:
    """On a host with many cores, how many instances suit which goal; "" on others."""
    groups = _by_node(facts, _cores(facts, request))
    cores = quota_threads(facts, sum(map(len, groups)))
    if cores < MANY_CORES:
        return ""
    largest = min(cores, max(map(len, groups)))
    # benchmarks/scaling.py --instances: BERT-base, bfloat16, (8,128)
    return (
        f"{cores} cores: one instance on {largest} cores of one node answers one request soonest; {cores} "
        "instances of one core answer most requests a second, where each has its own batch (on 16 cores of "
        "an Emerald Rapids they did 1.7 times the work of one process) and models share their weights "
        "(hfaccel.load)"
    )


def ranks(environment: Mapping[str, str]) -> int:
    """How many processes torchrun or mpirun started on this machine; 1 where it started none."""
    sizes = (environment.get(size, "") for _, size in RANKS)
    return max((int(size) for size in sizes if is_number(size)), default=1) or 1


def rank_slot(facts: HostFacts, environment: Mapping[str, str]) -> Slot | None:
    """The place of this process among the ranks that torchrun or mpirun started on this machine."""
    pairs = ((environment.get(rank, ""), environment.get(size, "")) for rank, size in RANKS)
    rank, size = next((pair for pair in pairs if pair != ("", "")), ("", ""))
    if not (is_number(rank) and is_number(size) and int(rank) < int(size) and int(size) > 1):
        return None
    limits = facts.limits
    if set(limits.affinity) < set(limits.parent_affinity):
        return None  # what started the ranks has bound them already
    if int(size) > len(usable_cores(facts, limits.affinity)):
        return None  # more ranks than cores: all places are equally bad
    return place(facts, Request(instances=int(size)))[int(rank)]._replace(asked=False)


def _cores(facts: HostFacts, request: Request) -> Cores:
    mask = facts.limits.affinity
    if request.cpus is not None:
        mask = _within(request.cpus, mask)
    if request.nodes is not None:
        mask = _on_nodes(facts, request.nodes, mask)
    # A user who names CPUs means all of them; otherwise the small cores of a hybrid processor stay out.
    cores = usable_cores(facts, mask) if request.cpus is None else facts.topology.cores(mask)
    whole = request.siblings or request.cpus is not None
    return cores if whole else tuple(cpus[:1] for cpus in cores)


def _within(cpus: tuple[int, ...], mask: tuple[int, ...]) -> tuple[int, ...]:
    if not cpus or set(cpus) - set(mask):
        raise UsageError(
            f"CPUs must be within the affinity mask {format_number_list(mask)}, "
            f"but got {format_number_list(cpus) or 'none'}"
        )
    return cpus


def _on_nodes(facts: HostFacts, nodes: tuple[int, ...], mask: tuple[int, ...]) -> tuple[int, ...]:
    node_of = facts.topology.node_of()
    chosen = tuple(cpu for cpu in mask if node_of.get(cpu, 0) in nodes)
    missing = sorted(set(nodes) - set(facts.topology.nodes_of(mask)))
    if not chosen or missing:
        known = format_number_list(facts.topology.nodes_of(mask))
        raise UsageError(
            f"NUMA nodes must have CPUs in the affinity mask (these have: {known}), "
            f"but got {format_number_list(nodes) or 'none'}"
        )
    return chosen


def _by_node(facts: HostFacts, cores: Cores) -> list[Cores]:
    node_of = facts.topology.node_of()
    groups: dict[int, list[tuple[int, ...]]] = {}
    for cpus in cores:
        groups.setdefault(node_of.get(cpus[0], 0), []).append(cpus)
    return [tuple(group) for group in groups.values()]


def _parts(groups: list[Cores], request: Request, allowed: int) -> list[Cores]:
    """The cores of each instance. `allowed`: how many cores the CPU quota lets compute at a time."""
    if request.mode == "throughput" and request.instances is None and request.cores_per_instance is None:
        return groups  # one instance on each node, whatever its size
    count, size = _shape(groups, request, allowed)
    within = _spread([_pieces(group, size) for group in groups])
    if len(within) >= count:
        return within[:count]
    taken = {core for part in within for core in part}
    rest = tuple(core for group in groups for core in group if core not in taken)
    return [*within, *_pieces(rest, size)][:count]  # the last ones across nodes


def _shape(groups: list[Cores], request: Request, allowed: int) -> tuple[int, int]:
    """How many instances of how many cores each."""
    total = sum(map(len, groups))
    count, size = request.instances, request.cores_per_instance
    if size is None and request.mode == "latency":
        size = _latency_size(groups, count, allowed)
    if count is not None and size is not None:
        _require(count * size, total, f"{count} instances of {size} cores")
        return count, size
    if count is not None:
        _require(count, total, f"{count} instances")
        return count, total // count
    if size is not None:
        _require(size, total, f"an instance of {size} cores")
        room = sum(len(group) // size for group in groups) or total // size
        return min(room, max(1, allowed // size)), size
    return 1, total


def _latency_size(groups: list[Cores], count: int | None, allowed: int) -> int:
    """Four cores; for a given number of instances, as many as let each instance stay on one node."""
    largest = max(map(len, groups))
    if count is None:
        return min(LATENCY_CORES, largest, allowed)
    fitting = (size for size in range(largest, 0, -1) if sum(len(group) // size for group in groups) >= count)
    return next(fitting, 1)


def _require(needed: int, total: int, wanted: str) -> None:
    if needed > total:
        raise UsageError(
            f"`instances * cores per instance <= cores` must hold, but {wanted} were asked for and "
            f"{total} cores may be used"
        )


def _pieces(cores: Cores, size: int) -> list[Cores]:
    return [cores[start : start + size] for start in range(0, len(cores) - size + 1, size)]


def _spread(pieces: list[list[Cores]]) -> list[Cores]:
    """A piece of each node in turn, so that few instances use the bandwidth of many nodes."""
    longest = max(map(len, pieces), default=0)
    return [node[turn] for turn in range(longest) for node in pieces if turn < len(node)]


def _slot(facts: HostFacts, request: Request, index: int, parts: list[Cores]) -> Slot:
    cores, count = parts[index], len(parts)
    cpus = tuple(sorted(cpu for core in cores for cpu in core))
    wanted = len(cpus) if request.siblings else len(cores)
    threads = quota_threads(facts, wanted, count)
    nodes = facts.topology.nodes_of(cpus)
    where = f"node {nodes[0]}" if len(nodes) == 1 else f"nodes {format_number_list(nodes)}"
    reason = f"{len(cores)} cores of {where}"
    if count > 1:
        reason = f"instance {index} of {count}: {reason}"
    if threads < wanted:
        reason += f"; the CPU quota of {facts.limits.cpu_quota:g} allows {threads} threads"
    return Slot(index, count, cpus, threads, nodes, reason)

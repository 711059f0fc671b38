"""Rules for threads, places and OpenMP. Pure: facts + goal -> value and reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, SupportsInt

from hfaccel.errors import UsageError
from hfaccel.host import HostFacts, Library, Node, format_number_list, parse_number_list, preload_problem
from hfaccel.plan.budget import cpu_budget
from hfaccel.plan.choice import Goal, Value, Values

Decision = tuple[Value, str]  # value, reason
Variables = dict[str, str]


# Threads

MOST_THREADS = 4096  # OpenMP ends the process, or crashes, where it cannot start the threads asked for


def threads(facts: HostFacts, goal: Goal) -> Decision:
    if goal.slot is not None:
        return goal.slot.threads, goal.slot.reason
    budget = cpu_budget(facts)
    return budget.threads, budget.reason


def under_quota(facts: HostFacts, goal: Goal) -> bool:
    """Whether a CPU quota, which several instances share, leaves less time than the usable cores have."""
    budget = cpu_budget(facts)
    return budget.limited_by_quota or (goal.slot is not None and goal.slot.threads < len(budget.cores))


def parse_threads(value: object, facts: HostFacts) -> int:
    try:
        number = int(value) if isinstance(value, str | SupportsInt) and not isinstance(value, bool) else 0
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1 or (not isinstance(value, str) and number != value):
        raise UsageError(f"`threads >= 1` must hold, but got {value!r}; leave it out to use every core")
    if number > MOST_THREADS:
        raise UsageError(
            f"`threads <= {MOST_THREADS}` must hold, but got {value!r}; leave it out to use every core"
        )
    return number


def interop_threads(facts: HostFacts, goal: Goal) -> Decision:
    return 1, "transformers' models have no parallel branches; torch would start a thread for each CPU"


# Places


def affinity(facts: HostFacts, goal: Goal) -> Decision:
    if goal.slot is not None:
        return goal.slot.cpus, goal.slot.reason
    budget = cpu_budget(facts)
    mask = facts.limits.affinity
    if budget.limited_by_quota:
        return None, "under a CPU quota the scheduler places threads better than a fixed mask"
    if len(budget.cores) >= len(mask):
        return None, "the mask already holds one CPU of each core"
    return budget.cores, f"one CPU of each core: {len(mask) - len(budget.cores)} other CPUs left out"


def parse_affinity(value: object, facts: HostFacts) -> tuple[int, ...] | None:
    if value is None or value == "off":
        return None
    try:
        cpus = parse_number_list(value) if isinstance(value, str) else _whole_numbers(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"CPU numbers such as 0-3,8 are expected, but got {value!r}: {error}") from None
    if not cpus or set(cpus) - set(facts.limits.affinity):
        allowed = format_number_list(facts.limits.affinity)
        raise UsageError(f"CPUs must be within the affinity mask {allowed}, but got {value!r}")
    return cpus


def _whole_numbers(values: object) -> tuple[int, ...]:
    if not isinstance(values, Iterable):
        raise TypeError("it is no list")
    given = list(values)
    numbers = [int(value) for value in given]
    if numbers != given:
        raise ValueError("they must be whole numbers")
    return tuple(sorted(set(numbers)))


class MemoryPolicy(NamedTuple):
    """The NUMA nodes of new pages, for set_mempolicy(2)."""

    mode: str  # "preferred", "bind" or "interleave"
    nodes: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.mode}:{format_number_list(self.nodes)}"


POLICIES = ("preferred", "bind", "interleave")


def memory_policy(facts: HostFacts, goal: Goal) -> Decision:
    topology, allowed = facts.topology, facts.limits.memory_nodes
    with_memory = [node for node in topology.nodes if node.memory and (not allowed or node.number in allowed)]
    if len(with_memory) < 2:
        return None, "all memory is on one NUMA node"
    used = topology.nodes_of(facts.limits.affinity)
    if len(used) != 1:
        where = format_number_list(used)
        nodes = tuple(node.number for node in with_memory if node.number in used)
        if len(nodes) < 2:
            return None, f"threads run on nodes {where}, of which at most one has memory"
        # One thread fills the weights, so by first touch all of them would lie on its node.
        return MemoryPolicy("interleave", nodes), f"threads run on nodes {where} and read the same weights"
    nearest = _nearest(topology.nodes, used[0], with_memory)
    # Preferred, not bound: once the node is full, the kernel kills a process whose memory is bound.
    return MemoryPolicy("preferred", (nearest,)), f"all threads run on node {used[0]}"


def _nearest(nodes: tuple[Node, ...], home: int, with_memory: list[Node]) -> int:
    """The node with memory that is nearest to `home`: `home` itself, unless it has none."""
    distances = next(node.distances for node in nodes if node.number == home)
    order = [node.number for node in nodes]
    return min(with_memory, key=lambda node: distances[order.index(node.number)]).number


def parse_memory_policy(value: object, facts: HostFacts) -> MemoryPolicy | None:
    if value == "off":
        return None
    mode, _, text = str(value).partition(":")
    known = {node.number for node in facts.topology.nodes}
    try:
        nodes = parse_number_list(text)
    except ValueError:
        nodes = ()
    if mode not in POLICIES or not nodes or set(nodes) - known:
        raise UsageError(
            f"a memory policy is off, or {', '.join(POLICIES)} with nodes of {sorted(known)} such as "
            f"preferred:0, but got {value!r}"
        )
    return MemoryPolicy(mode, nodes)


# OpenMP reads its variables once, when the library is loaded.


def omp_runtime(facts: HostFacts, goal: Goal) -> Decision:
    intel = next((library for library in facts.openmp if library.kind == "intel"), None)
    if intel is None:
        return None, "torch's own; no other is installed"
    if under_quota(facts, goal):
        return None, "torch's own: Intel's threads spin, which uses up a CPU quota"
    # benchmarks/openmp.py on AMD: 1.09 and 1.01 times faster at (1,16) in two runs, 1.01 at (1,128) in both.
    return intel, "Intel's OpenMP is installed, and was never slower than torch's in measurements"


def parse_omp_runtime(value: object, facts: HostFacts) -> Library | None:
    if value == "default":
        return None
    for library in facts.openmp:
        if value == library.kind:
            return library
    if isinstance(value, str) and "/" in value:
        problem = preload_problem(value)
        if problem is None:
            return Library("intel", value)
        raise UsageError(f"an OpenMP runtime must be loadable, but {value} {problem}")
    found = ", ".join(library.kind for library in facts.openmp) or "none"
    raise UsageError(
        "the OpenMP runtime must be default, a path, or one that is installed "
        f"(found here: {found}), but got {value!r}; pip install intel-openmp brings intel"
    )


def omp_wait_policy(facts: HostFacts, goal: Goal) -> Decision:
    if under_quota(facts, goal):
        return "passive", "under a CPU quota a spinning thread uses up time that other threads need"
    return None, "OpenMP's default, to spin for milliseconds and then sleep, suits dedicated cores"


def parse_omp_wait_policy(value: object, facts: HostFacts) -> str:
    if str(value).lower() in ("active", "passive"):
        return str(value).lower()
    raise UsageError(f"the OpenMP wait policy must be active or passive, but got {value!r}")


def export_omp_wait_policy(value: str, values: Values) -> Variables:
    if values.get("omp_runtime") is None:
        return {"OMP_WAIT_POLICY": value}
    return {"KMP_BLOCKTIME": "infinite" if value == "active" else "0"}  # milliseconds


def omp_placement(facts: HostFacts, goal: Goal) -> Decision:
    return None, "the affinity mask has one CPU for each thread, and the kernel keeps threads there"


def parse_omp_placement(value: object, facts: HostFacts) -> str | None:
    if value in ("close", "spread"):
        return str(value)
    if value == "off":
        return None
    raise UsageError(f"the OpenMP placement must be close, spread or off, but got {value!r}")


def export_omp_placement(value: str, values: Values) -> Variables:
    """Variables of the loaded runtime only: Intel's reads both families, and warns of contradictions."""
    if values.get("omp_runtime") is None:
        return {"OMP_PROC_BIND": value, "OMP_PLACES": "cores"}
    kind = "compact" if value == "close" else "scatter"
    return {"KMP_AFFINITY": f"granularity=fine,{kind},1,0"}

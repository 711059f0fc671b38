"""info(): the host's facts and the plan for it, as one object."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hfaccel.errors import UsageError, check_path
from hfaccel.host import MAX_ISA, HostFacts, Processor, format_number_list, is_capture, read_host
from hfaccel.plan import Goal, Plan, cpu_budget, make_plan
from hfaccel.tables import render


@dataclass(frozen=True)
class Information:
    """What the machine and the container allow, and what `hfaccel-run` would choose here."""

    facts: HostFacts
    plan: Plan

    def to_dict(self) -> dict[str, object]:
        return {"facts": self.facts.to_dict(), "plan": self.plan.to_dict()}

    def __str__(self) -> str:
        choices = [[c.knob, c.value, c.source, c.reason] for c in self.plan.choices]
        tables = [
            render("host", ["fact", "value"], _rows(self.facts)),
            render("plan of hfaccel-run", ["knob", "value", "source", "reason"], choices),
        ]
        if self.facts.problems:
            tables.append(render("could not be read", ["problem"], [[line] for line in self.facts.problems]))
        return "\n".join(tables)


def info(root: str | Path = "/") -> Information:
    """Read the facts of a host and plan for it. `root`: "/" for this machine; a folder or a captured file for
    another host. Changes nothing. Raises UsageError for a root that cannot be read.
    """
    check_path("a root", root)
    if not os.access(root, os.R_OK):
        raise UsageError(f"a root must be a folder or a captured file, but {str(root)!r} cannot be read")
    if Path(root).is_file() and not is_capture(root):
        raise UsageError(
            f"a captured file must have lines such as `==> /proc/cpuinfo <==`, but {str(root)!r} has none"
        )
    facts = read_host(root)
    environment = dict(os.environ) if str(root) == "/" else {}
    return Information(facts, make_plan(facts, Goal("launch", {}, environment)))


def _rows(facts: HostFacts) -> list[list[object]]:
    return [*_processor_rows(facts), *_limit_rows(facts), *_memory_rows(facts), *_library_rows(facts)]


def _processor_rows(facts: HostFacts) -> list[list[object]]:
    processor, topology = facts.processor, facts.topology
    name = processor.model_name or processor.vendor or "unknown"
    caches = [f"L{c.level} {c.kind.lower()} {_size(c.size)}, CPUs {_list(c.cpus)}" for c in topology.caches]
    nodes = [
        f"{node.number}: CPUs {_list(node.cpus)}, {_size(node.memory)}, distances {list(node.distances)}"
        for node in topology.nodes
    ]
    withheld: list[list[object]] = [["cannot be used", line] for line in processor.withheld]
    return [
        ["processor", f"{name} ({processor.codename})" if processor.codename else name],
        ["instructions", " ".join(processor.isa) or "none of interest"],
        *withheld,
        ["kernels", _kernels(processor)],
        ["caches of the first CPU", "\n".join(caches) or "unknown"],
        ["frequency governor", topology.governor or "not visible"],
        ["online CPUs", len(topology.cpus)],
        ["sockets", topology.packages],
        ["offline CPUs", _list(topology.offline)],
        ["NUMA nodes", "\n".join(nodes)],
        ["nodes of each socket", topology.nodes_per_package],
    ]


def _kernels(processor: Processor) -> str:
    cap = f" ({MAX_ISA}={processor.kernel_cap})" if processor.kernel_cap else ""
    return (processor.kernel_sets[0] if processor.kernel_sets else "none") + cap


def _limit_rows(facts: HostFacts) -> list[list[object]]:
    limits = facts.limits
    quota = "unlimited" if limits.cpu_quota is None else f"{limits.cpu_quota:g} CPUs"
    if limits.cpu_quota is not None and limits.throttled is not None:
        quota += f", used up in {limits.throttled} periods so far"
    return [
        ["affinity mask", _list(limits.affinity)],
        ["physical cores in it", len(cpu_budget(facts).cores)],
        ["cpuset", _list(limits.cpuset or ())],
        ["CPU quota", quota],
        ["time taken by the hypervisor", f"{limits.steal:.1%}"],
        ["memory limit", "unlimited" if limits.memory_limit is None else _size(limits.memory_limit)],
        ["memory that may be locked", "any" if limits.locked_memory is None else _size(limits.locked_memory)],
    ]


def _memory_rows(facts: HostFacts) -> list[list[object]]:
    memory = facts.memory
    sizes = ", ".join(f"{_size(size)} {mode}" for size, mode in memory.thp_sizes if mode != "never")
    pools = [
        f"node {node.number}: {pool.free} of {pool.total} pages of {_size(pool.size)} free"
        for node in facts.topology.nodes
        for pool in node.huge_pages
    ]
    disabled = ", switched off for this process" if memory.thp_disabled else ""
    return [
        ["memory", _size(memory.total)],
        ["transparent huge pages", f"{memory.thp} (defrag {memory.thp_defrag or 'unknown'}){disabled}"],
        ["of shared memory", memory.thp_shared or "unknown"],
        ["of other sizes", sizes or "none"],
        ["explicit huge pages", "\n".join(pools) or "none"],
    ]


def _library_rows(facts: HostFacts) -> list[list[object]]:
    software = facts.software
    return [
        ["kernel", facts.kernel or "unknown"],
        ["libc", f"{facts.libc} {facts.libc_version}".strip()],
        ["allocators found", "\n".join(f"{a.kind} ({a.path})" for a in facts.allocators) or "none"],
        ["OpenMP runtimes found", "\n".join(f"{r.kind} ({r.path})" for r in facts.openmp) or "none"],
        ["models are kept in", f"{software.hub_cache} ({software.hub_cache_filesystem or 'unknown'})"],
        ["CUDA driver", "yes" if software.cuda else "no"],
    ]


def _list(numbers: tuple[int, ...]) -> str:
    return format_number_list(numbers) or "none"


def _size(count: int) -> str:
    if count == 0:
        return "unknown"
    power = min(3, (count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.4g} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"

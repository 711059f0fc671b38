"""info(): the host's facts and the plan for it, as one object."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfaccel.errors import UsageError
from hfaccel.host import HostFacts, read_host
from hfaccel.plan import Goal, Plan, cpu_budget, make_plan
from hfaccel.tables import render


@dataclass(frozen=True)
class Information:
    """What the machine and the container allow, and what `hfaccel-run` would choose here."""

    facts: HostFacts
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
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
    """Read the host below `root` ("/" is this machine) and plan for it. Changes nothing.

    Raises UsageError for a root that is no folder.
    """
    if not Path(root).is_dir():
        raise UsageError(f"a root must be a folder that holds proc and sys, but got {str(root)!r}")
    facts = read_host(root)
    environment = dict(os.environ) if str(root) == "/" else {}
    return Information(facts, make_plan(facts, Goal("launch", {}, environment)))


def _rows(facts: HostFacts) -> list[list[object]]:
    limits, memory = facts.limits, facts.memory
    quota = "unlimited" if limits.cpu_quota is None else f"{limits.cpu_quota:g} CPUs"
    limit = "unlimited" if limits.memory_limit is None else f"{limits.memory_limit / 2**30:.1f} GiB"
    return [
        ["processor", facts.processor.model_name or facts.processor.vendor or "unknown"],
        ["instructions", " ".join(facts.processor.isa) or "none of interest"],
        ["online CPUs", len(facts.topology.cpus)],
        ["physical cores in the affinity mask", len(cpu_budget(facts).cores)],
        ["CPU quota", quota],
        ["memory", f"{memory.total / 2**30:.1f} GiB, container limit {limit}"],
        ["transparent huge pages", f"{memory.thp} (defrag {memory.thp_defrag or 'unknown'})"],
        ["libc", facts.libc],
        ["allocators found", ", ".join(f"{a.kind} ({a.path})" for a in facts.allocators) or "none"],
    ]

"""configure(): set this process up from inside, without restarting it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from hfaccel.apply.process import apply_plan
from hfaccel.host import HostFacts, read_host
from hfaccel.outcome import Outcome
from hfaccel.plan import Goal, Plan, make_plan


@dataclass(frozen=True)
class Configuration:
    """What configure() found, chose and did."""

    facts: HostFacts
    overrides: dict[str, Any]  # of this call and those before it
    plan: Plan
    outcomes: tuple[Outcome, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "facts": self.facts.to_dict(),
            "plan": self.plan.to_dict(),
            "applied": [outcome.to_dict() for outcome in self.outcomes],
        }


_current: Configuration | None = None


def configure(**overrides: Any) -> Configuration:
    """Set the running process up: threads, affinity, and glibc's malloc where it serves this process.

    Without arguments, a second call changes nothing and returns the first's answer. `overrides` are
    added to those of earlier calls: knobs by name (docs/knobs.md), for example `threads=4` or
    `allocator="default"`; they win over the environment and the rules. Call it before threads are
    started: memory that they already hold keeps its old arenas. Raises UsageError for an unknown knob
    or value; what the system refuses is an Outcome with its reason.
    """
    global _current
    if _current is None or overrides:
        facts = read_host()
        wanted = {**(_current.overrides if _current else {}), **overrides}
        plan = make_plan(facts, Goal("process", wanted, dict(os.environ)))
        _current = Configuration(facts, wanted, plan, tuple(apply_plan(plan, facts)))
    return _current

"""configure(): set this process up from inside, without restarting it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hfaccel.apply import hooks
from hfaccel.apply.process import apply_plan
from hfaccel.apply.program import settings_of_program
from hfaccel.host import HostFacts, read_host
from hfaccel.outcome import Outcome
from hfaccel.plan import Goal, Plan, Slot, make_plan, rank_slot


@dataclass(frozen=True)
class Configuration:
    """What configure() found, chose and did."""

    facts: HostFacts
    overrides: dict[str, Any]  # of this call and those before it
    plan: Plan
    outcomes: tuple[Outcome, ...]
    slot: Slot | None = None  # its place among the ranks that were started on this machine
    program: Mapping[str, str] = field(default_factory=dict)  # knob -> how the program had set it before

    def to_dict(self) -> dict[str, Any]:
        return {
            "facts": self.facts.to_dict(),
            "plan": self.plan.to_dict(),
            "applied": [outcome.to_dict() for outcome in self.outcomes],
        }


_current: Configuration | None = None


def configure(**overrides: Any) -> Configuration:
    """Set the running process up: threads, affinity, memory policy, and glibc's malloc where that serves it.

    Without arguments, a second call changes nothing and returns the first's answer. `overrides` are
    added to those of earlier calls, and only what they change is applied: knobs by name (docs/knobs.md),
    for example `threads=4` or `allocator="default"`; they win over the environment and the rules, and so
    does what the program has set by itself before, such as torch.set_num_threads. Call it
    before threads are started: memory that they already hold keeps its old arenas.

    Ranks that torchrun or mpirun started on one machine (LOCAL_RANK, LOCAL_WORLD_SIZE) share its cores
    between them. Child processes get the affinity mask that this process had before, unless you ask for
    `affinity` yourself; a forked child starts threads of its own instead of hanging in OpenMP.

    Raises UsageError for an unknown knob or value; what the system refuses is an Outcome with its reason.
    """
    global _current
    if _current is None or overrides:
        facts = read_host()
        wanted = {**(_current.overrides if _current else {}), **overrides}
        # A rank keeps its place: later its own mask is smaller than its parent's.
        slot = _current.slot if _current else rank_slot(facts, os.environ)
        program = _current.program if _current else settings_of_program(facts)
        plan = make_plan(facts, Goal("process", wanted, dict(os.environ), slot=slot, program=program))
        if _current is None:
            _install_hooks(plan, facts, slot)
        outcomes = apply_plan(plan, _done(_current, plan, overrides) if _current else {})
        _current = Configuration(facts, wanted, plan, tuple(outcomes), slot, program)
    return _current


_TOGETHER = {"allocator": "retained_memory"}  # knob -> the one that is applied with it


def _done(before: Configuration, plan: Plan, overrides: dict[str, Any]) -> dict[str, Outcome]:
    """What was applied already and is neither planned otherwise now nor asked for in this call: the program
    may have changed it since."""
    return {
        outcome.subject: outcome
        for outcome in before.outcomes
        if outcome.applied
        and all(
            knob not in overrides and plan[knob].value == before.plan[knob].value
            for knob in (outcome.subject, _TOGETHER.get(outcome.subject, outcome.subject))
        )
    }


def _install_hooks(plan: Plan, facts: HostFacts, slot: Slot | None) -> None:
    hooks.keep_affinity_over_import()
    hooks.survive_forks()
    choice = plan["affinity"]
    if choice.value is not None and choice.source == "rule" and slot is None:
        hooks.give_children_affinity(set(facts.limits.affinity))

"""facts + goal -> plan. Precedence: user > program > existing environment > tuned profile > rule."""

from __future__ import annotations

from collections.abc import Mapping

from hfaccel.errors import UsageError
from hfaccel.host import HostFacts
from hfaccel.plan.budget import cpu_budget
from hfaccel.plan.choice import Choice, Goal, Plan
from hfaccel.plan.knobs import KNOBS, Knob


def make_plan(facts: HostFacts, goal: Goal) -> Plan:
    """Choose a value for every knob. Pure: the same facts and goal give the same plan.

    Raises UsageError for an override of something that is no knob, or with a value that the knob refuses.
    """
    check_knobs(goal.overrides, "a setting")
    check_knobs(goal.profile, "a setting of a profile")
    if goal.slot is not None:
        facts = within(facts, goal.slot.cpus)
    choices = {knob.name: _choose(knob, facts, goal) for knob in KNOBS}
    affinity = choices["affinity"]
    asked = goal.overrides.get("affinity", "auto") not in ("auto", None) or affinity.source == "profile"
    if asked and affinity.value is not None:
        # The other rules see the mask that was asked for, so that threads do not exceed its cores.
        place = within(facts, affinity.value)
        if goal.slot is not None:
            threads = min(goal.slot.threads, cpu_budget(place).threads)
            goal = goal._replace(slot=goal.slot._replace(cpus=affinity.value, threads=threads))
        rest = {knob.name: _choose(knob, place, goal) for knob in KNOBS if knob.name != "affinity"}
        choices.update(rest)
    return Plan(tuple(choices.values()))


def check_knobs(settings: Mapping[str, object], what: str) -> None:
    unknown = sorted(set(settings) - {knob.name for knob in KNOBS})
    if unknown:
        known = ", ".join(knob.name for knob in KNOBS)
        raise UsageError(f"{what} must be one of {known}, but got {', '.join(unknown)}")


def within(facts: HostFacts, cpus: tuple[int, ...]) -> HostFacts:
    """The facts for a process that is bound to these CPUs."""
    return facts._replace(limits=facts.limits._replace(affinity=cpus))


def _choose(knob: Knob, facts: HostFacts, goal: Goal) -> Choice:
    wanted = goal.overrides.get(knob.name, "auto")
    if wanted not in ("auto", None):
        return Choice(knob.name, knob.parse(wanted, facts), "asked for", "user")
    if goal.slot is not None and goal.slot.asked and knob.name in ("threads", "affinity"):
        value, reason = knob.rule(facts, goal)
        return Choice(knob.name, value, reason, "user")
    if knob.name in goal.program:
        return Choice(knob.name, None, f"{goal.program[knob.name]} is the program's own and kept", "program")
    for variable in knob.variables:
        value = goal.environment.get(variable)
        if value:
            return Choice(knob.name, None, _kept(knob, variable, value, facts, goal), "environment")
    tuned = goal.profile.get(knob.name, "auto")
    value = None if tuned in ("auto", None) else knob.parse(tuned, facts)
    if goal.scope not in knob.scopes:
        where = "hfaccel-run" if knob.scopes == ("launch",) else "configure()"
        return Choice(knob.name, None, f"{where} sets it: it takes effect only there", "rule")
    if tuned not in ("auto", None):
        return Choice(knob.name, value, "tuned", "profile")
    value, reason = knob.rule(facts, goal)
    return Choice(knob.name, value, reason, "rule")


def _kept(knob: Knob, variable: str, value: str, facts: HostFacts, goal: Goal) -> str:
    """Why a variable wins, and how to get the rule's choice where nobody chose that variable's value."""
    reason = f"{variable}={value} is set and kept"
    if variable == "OMP_NUM_THREADS" and value == "1" and "TORCHELASTIC_RUN_ID" in goal.environment:
        better, _ = knob.rule(facts, goal)
        if better > 1:
            reason += f"; torchrun sets that where nothing is set: start it with OMP_NUM_THREADS={better}"
    return reason

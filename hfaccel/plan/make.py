"""facts + goal -> plan. Precedence: user > existing environment > rule."""

from __future__ import annotations

from hfaccel.errors import UsageError
from hfaccel.host import HostFacts
from hfaccel.plan.choice import Choice, Goal, Plan
from hfaccel.plan.knobs import KNOBS, Knob


def make_plan(facts: HostFacts, goal: Goal) -> Plan:
    """Choose a value for every knob. Pure: the same facts and goal give the same plan.

    Raises UsageError for an override that is not a knob or not a value of it.
    """
    unknown = sorted(set(goal.overrides) - {knob.name for knob in KNOBS})
    if unknown:
        known = ", ".join(knob.name for knob in KNOBS)
        raise UsageError(f"a setting must be one of {known}, but got {', '.join(unknown)}")
    choices = {knob.name: _choose(knob, facts, goal) for knob in KNOBS}
    affinity = choices["affinity"]
    if affinity.source == "user" and affinity.value is not None:
        # The rules see the mask that the user asks for, so that there are no more threads than its cores.
        within = facts._replace(limits=facts.limits._replace(affinity=affinity.value))
        rest = {knob.name: _choose(knob, within, goal) for knob in KNOBS if knob.name != "affinity"}
        choices.update(rest)
    return Plan(tuple(choices.values()))


def _choose(knob: Knob, facts: HostFacts, goal: Goal) -> Choice:
    wanted = goal.overrides.get(knob.name, "auto")
    if wanted not in ("auto", None):
        return Choice(knob.name, knob.parse(wanted, facts), "asked for", "user")
    for variable in knob.variables:
        value = goal.environment.get(variable)
        if value:
            return Choice(knob.name, None, f"{variable}={value} is set and kept", "environment")
    value, reason = knob.rule(facts, goal)
    return Choice(knob.name, value, reason, "rule")

"""Decision: facts + goal -> Plan, a list of choices, each with its reason. Pure."""

from hfaccel.plan.budget import Budget, cpu_budget
from hfaccel.plan.choice import Choice, Goal, Plan
from hfaccel.plan.compute import MemoryPolicy
from hfaccel.plan.knobs import KNOBS, Knob
from hfaccel.plan.make import check_knobs, make_plan
from hfaccel.plan.placement import Request, Slot, advice, place, rank_slot

__all__ = [
    "KNOBS",
    "Budget",
    "Choice",
    "Goal",
    "Knob",
    "MemoryPolicy",
    "Plan",
    "Request",
    "Slot",
    "advice",
    "check_knobs",
    "cpu_budget",
    "make_plan",
    "place",
    "rank_slot",
]

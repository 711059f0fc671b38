"""Decision: facts + goal -> Plan, a list of choices, each with its reason. Pure."""

from hfaccel.plan.budget import Budget, cpu_budget
from hfaccel.plan.choice import Choice, Goal, Plan
from hfaccel.plan.knobs import KNOBS, Knob
from hfaccel.plan.make import make_plan

__all__ = ["KNOBS", "Budget", "Choice", "Goal", "Knob", "Plan", "cpu_budget", "make_plan"]

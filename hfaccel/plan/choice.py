"""A plan is a list of choices, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from hfaccel.host.facts import to_data
from hfaccel.plan.placement import Slot

Source = Literal["user", "program", "environment", "profile", "rule"]


class Choice(NamedTuple):
    """What one knob is set to, and why. `value` None leaves things as they are."""

    knob: str
    value: Any
    reason: str
    source: Source = "rule"

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = to_data(self)
        return data


class Plan:
    """The choices for all knobs, in the order of the table; `plan["threads"]` is the one for threads."""

    def __init__(self, choices: tuple[Choice, ...]) -> None:
        self.choices = choices

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.choices == other.choices

    def __hash__(self) -> int:
        return hash(self.choices)

    def __repr__(self) -> str:
        return f"Plan({self.choices!r})"

    def __getitem__(self, knob: str) -> Choice:
        for choice in self.choices:
            if choice.knob == knob:
                return choice
        known = ", ".join(choice.knob for choice in self.choices)
        raise KeyError(f"a plan has the knobs {known}, but got {knob!r}")

    def to_dict(self) -> list[dict[str, Any]]:
        return [choice.to_dict() for choice in self.choices]


class Goal(NamedTuple):
    """What the plan is for.

    `scope` "launch" plans a process that is yet to start, where libraries can still be preloaded and
    variables set; "process" plans the running one. `overrides` maps a knob to the value the user wants,
    `profile` to the one that was found by tuning, both in the words of that knob's row; `environment` is
    the environment that the process has or would inherit; `slot` is its place among several instances;
    `program` maps a knob that the running program has set by itself to how it did.
    """

    scope: Literal["launch", "process"] = "launch"
    overrides: Mapping[str, Any] = MappingProxyType({})
    environment: Mapping[str, str] = MappingProxyType({})
    profile: Mapping[str, Any] = MappingProxyType({})
    slot: Slot | None = None
    program: Mapping[str, str] = MappingProxyType({})

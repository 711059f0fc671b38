"""A plan is a list of choices, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

from hfaccel.host.facts import to_data
from hfaccel.plan.placement import Slot

Source = Literal["user", "program", "environment", "profile", "rule"]
Value: TypeAlias = Any  # what a knob is set to, of the type that its row's `parse` returns
Values = Mapping[str, Value]  # by knob


class Choice(NamedTuple):
    """What one knob is set to, and why. The value None changes nothing."""

    knob: str
    value: Value
    reason: str
    source: Source = "rule"

    def to_dict(self) -> dict[str, object]:
        return {name: to_data(item) for name, item in self._asdict().items()}


class Plan:
    """The choices for all knobs, in the order of KNOBS; `plan["threads"]` is the choice for `threads`."""

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

    def to_dict(self) -> list[dict[str, object]]:
        return [choice.to_dict() for choice in self.choices]


class Goal(NamedTuple):
    """What the plan is for.

    `scope`: "launch" for a process that is yet to start, where libraries can still be preloaded and variables
    set; "process" for the running process. `overrides`: knob -> the value that the user wants; `profile`:
    knob -> the value that tuning found, both as `Knob.parse` accepts them. `environment`: what the process
    has or would inherit. `slot`: its place among several instances. `program`: knob -> how the running
    program has set this knob itself.
    """

    scope: Literal["launch", "process"] = "launch"
    overrides: Mapping[str, object] = MappingProxyType({})
    environment: Mapping[str, str] = MappingProxyType({})
    profile: Mapping[str, object] = MappingProxyType({})
    slot: Slot | None = None
    program: Mapping[str, str] = MappingProxyType({})

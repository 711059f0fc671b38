"""A plan is a list of choices, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

TYPE_CHECKING = False  # hfaccel-run starts in milliseconds: typing is for the checker only
if TYPE_CHECKING:
    from typing import Any, Literal

    Source = Literal["user", "environment", "profile", "rule"]


@dataclass(frozen=True)
class Choice:
    """What one knob is set to, and why. `value` None leaves things as they are."""

    knob: str
    value: Any
    reason: str
    source: Source = "rule"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    choices: tuple[Choice, ...]

    def __getitem__(self, knob: str) -> Choice:
        for choice in self.choices:
            if choice.knob == knob:
                return choice
        known = ", ".join(choice.knob for choice in self.choices)
        raise KeyError(f"a plan has the knobs {known}, but got {knob!r}")

    def to_dict(self) -> list[dict[str, Any]]:
        return [choice.to_dict() for choice in self.choices]


@dataclass(frozen=True)
class Goal:
    """What the plan is for.

    `scope` "launch" plans a process that is yet to start, where libraries can still be preloaded;
    "process" plans the running one. `overrides` maps a knob to the value the user wants, in the words
    of that knob's row; `environment` is the environment that the process has or would inherit.
    """

    scope: Literal["launch", "process"] = "launch"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

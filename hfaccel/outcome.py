"""What was done to something, or was not, and why. Every floor of the house reports in this form."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One line of a report.

    `subject` names the thing, `applied` whether it was changed, `reason` why or why not. `count` is the
    number of equal things that the line stands for. `gain` is how many times faster it is than before, as
    measured on this machine; None where it was not.
    """

    subject: str
    applied: bool
    reason: str
    count: int = 1
    gain: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def merge(outcomes: list[Outcome]) -> tuple[Outcome, ...]:
    """Equal lines become one line with a count; the order of first appearance is kept."""
    counts: dict[Outcome, int] = {}
    for outcome in outcomes:
        key = replace(outcome, count=1)
        counts[key] = counts.get(key, 0) + outcome.count
    return tuple(replace(outcome, count=count) for outcome, count in counts.items())

"""What was done to something, or was not, and why. Every floor of the house reports in this form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One line of a report.

    `subject` names the thing, `applied` whether it was changed, `reason` why or why not. `count` is the
    number of equal things that the line stands for.
    """

    subject: str
    applied: bool
    reason: str
    count: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def merge(outcomes: list[Outcome]) -> tuple[Outcome, ...]:
    """Equal lines become one line with a count; the order of first appearance is kept."""
    counts: dict[Outcome, int] = {}
    for outcome in outcomes:
        key = Outcome(outcome.subject, outcome.applied, outcome.reason)
        counts[key] = counts.get(key, 0) + outcome.count
    return tuple(Outcome(o.subject, o.applied, o.reason, count) for o, count in counts.items())

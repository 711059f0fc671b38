"""What was done to something, or was not done, and why. Every package reports in this form."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Outcome:
    """One line of a report.

    `subject`: what the line is about. `applied`: whether it was changed. `reason`: why, or why not. `count`:
    how many equal things the line stands for. `gain`: how many times faster the thing became, as measured on
    this machine; None where it was not measured.
    """

    subject: str
    applied: bool
    reason: str
    count: int = 1
    gain: float | None = None

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def merge(outcomes: list[Outcome]) -> tuple[Outcome, ...]:
    """Equal lines as one line with a count, in the order of first appearance."""
    counts: dict[Outcome, int] = {}
    for outcome in outcomes:
        key = replace(outcome, count=1)
        counts[key] = counts.get(key, 0) + outcome.count
    return tuple(replace(outcome, count=count) for outcome, count in counts.items())

"""What a check is: a small class. A new check is a class and an entry of CHECKS."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from hfaccel.host import HostFacts, read_host

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it."""

    check: str
    status: Status
    message: str
    advice: str = ""


class Check(ABC):
    """A check of one thing, shown as `name` in the table.

    `find` gets the facts of this host and returns a Finding: "ok" needs no advice, a "warning" costs speed,
    an "error" costs correctness or makes the run fail.
    """

    name: str

    @abstractmethod
    def find(self, facts: HostFacts) -> Finding: ...

    def ok(self, message: str) -> Finding:
        return Finding(self.name, "ok", message)

    def warning(self, message: str, advice: str) -> Finding:
        return Finding(self.name, "warning", message, advice)

    def error(self, message: str, advice: str) -> Finding:
        return Finding(self.name, "error", message, advice)


@dataclass(frozen=True)
class Diagnosis:
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0: all is well, 1: warnings, 2: errors."""
        statuses = {finding.status for finding in self.findings}
        return 2 if "error" in statuses else 1 if "warning" in statuses else 0

    def to_dict(self) -> dict[str, object]:
        return {"exit_code": self.exit_code, "findings": [asdict(finding) for finding in self.findings]}


def diagnose(checks: Sequence[Check], facts: HostFacts | None = None) -> Diagnosis:
    """Run the checks in order on `facts`, by default this host's."""
    known = read_host() if facts is None else facts
    return Diagnosis(tuple(check.find(known) for check in checks))

"""What two runs of the same tests say of hfaccel. Pure: lines of plugin.py in, a verdict out."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class Run:
    """The tests of one process."""

    outcomes: dict[str, str] = field(default_factory=dict)  # test -> passed, failed or skipped
    messages: dict[str, str] = field(default_factory=dict)  # of those that failed
    finished: bool = False
    optimized: int = 0
    applied: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)

    def count(self, outcome: str) -> int:
        return sum(each == outcome for each in self.outcomes.values())


def read(lines: Iterable[str]) -> Run:
    """A test with subtests, or with a teardown that fails, has several lines: one failure makes it fail."""
    run = Run()
    for line in map(json.loads, lines):
        if line.get("finished"):
            run.finished, run.optimized = True, sum(line["optimized"].values())
            run.applied, run.left, run.computed = line["applied"], line["left"], line.get("computed", {})
            continue
        test, outcome = line["test"], line["outcome"]
        if outcome == "failed":
            run.messages[test] = run.messages.get(test) or line["message"]
        if outcome == "failed" or run.outcomes.get(test) != "failed":
            run.outcomes[test] = outcome
    return run


@dataclass(frozen=True)
class Verdict:
    new: dict[str, str]  # failures that stock does not have and no reason explains -> message
    known: dict[str, str]  # failures that stock does not have -> pattern of the reason
    missing: tuple[str, ...]  # tests that stock ran and hfaccel did not


def compare(stock: Run, fast: Run, reasons: Mapping[str, str]) -> Verdict:
    """`reasons`: pattern of test -> why its failure is no fault. What stock fails, or skips, says nothing."""
    new, known = {}, {}
    for test, outcome in fast.outcomes.items():
        if outcome != "failed" or stock.outcomes.get(test, "passed") != "passed":
            continue
        pattern = next((each for each in reasons if fnmatch.fnmatch(test, each)), None)
        if pattern is None:
            new[test] = fast.messages[test]
        else:
            known[test] = pattern
    passed = (test for test, outcome in stock.outcomes.items() if outcome == "passed")
    return Verdict(new, known, tuple(test for test in passed if fast.outcomes.get(test) in (None, "skipped")))

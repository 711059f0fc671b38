"""How two runs of another project's tests are compared. The runs: `python tests/upstream/run.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from known import DESELECTED, REASONS
from targets import TYPES
from verdict import Run, compare, read


def lines(*outcomes: tuple[str, str], finished: bool = True) -> list[str]:
    found = [{"test": test, "outcome": outcome, "message": "E  why"} for test, outcome in outcomes]
    end = {"finished": True, "optimized": {"torch": 2}, "applied": {"BERT layer": 2}, "left": {}}
    return [json.dumps(line) for line in (*found, *([end] if finished else []))]


def test_one_failed_subtest_or_teardown_fails_the_test():
    run = read(lines(("a", "passed"), ("a", "failed"), ("a", "passed"), ("b", "passed")))
    assert run.outcomes == {"a": "failed", "b": "passed"} and run.messages == {"a": "E  why"}
    assert run.finished and run.optimized == 2


def test_a_process_that_crashed_is_seen():
    assert not read(lines(("a", "passed"), finished=False)).finished


def test_only_failures_that_stock_does_not_have_count():
    stock = read(lines(("both", "failed"), ("one", "passed"), ("left", "skipped"), ("fine", "passed")))
    fast = read(lines(("both", "failed"), ("one", "failed"), ("left", "failed"), ("fine", "passed")))
    assert compare(stock, fast, {}).new == {"one": "E  why"}


def test_a_known_failure_names_its_reason():
    stock, fast = read(lines(("x::test_graph", "passed"))), read(lines(("x::test_graph", "failed")))
    verdict = compare(stock, fast, {"*::test_graph": "why"})
    assert not verdict.new and verdict.known == {"x::test_graph": "*::test_graph"}


def test_what_hfaccel_did_not_run_is_missing():
    stock = read(lines(("a", "passed"), ("b", "passed"), ("c", "skipped")))
    assert compare(stock, read(lines(("a", "skipped"))), {}).missing == ("a", "b")


def test_what_was_not_collected_in_both_is_new():
    fast = Run({"file": "failed"}, {"file": "E  why"})
    assert compare(Run(), fast, {}).new == {"file": "E  why"}


def test_every_difference_has_a_reason():
    assert all(reason.strip() for reason in (*REASONS.values(), *DESELECTED.values()))


def test_as_many_types_as_promised():
    assert len(set(TYPES)) >= 30

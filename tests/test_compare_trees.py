"""The comparison of two checkouts: every case once, each side with its own interpreter and code."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import compare_trees
from hfaccel.bench.pairs import Comparison, load_case

ROOT = Path(__file__).parent.parent


def test_every_case_has_a_name_of_its_own_and_a_function():
    cases = compare_trees.cases()
    assert len({case.name for case in cases}) == len(cases) > 20
    assert all(load_case(str(ROOT / case.function)) for case in cases)


def test_each_side_runs_its_own_checkout(monkeypatch, tmp_path):
    sides = []

    def compare(old, new, pairs):
        sides.extend((old, new))
        return Comparison(old.name, new.name, ({"seconds": 1.0},) * pairs, ({"seconds": 1.25},) * pairs)

    monkeypatch.setattr(compare_trees, "compare", compare)
    case = compare_trees.cases()[0]
    row = compare_trees.measure(case, tmp_path, argparse.Namespace(threads=1, rounds=3))
    assert row["measured"] == 0.8 < row["bar"] and json.dumps(row)
    before, after = (side.command() for side in sides)
    assert before[0] == str(tmp_path / ".venv/bin/python") and str(tmp_path / case.function) in before
    assert after[0] == str(ROOT / ".venv/bin/python") and str(ROOT / case.function) in after

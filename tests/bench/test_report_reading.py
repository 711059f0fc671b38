"""A result file as typed values: nothing is guessed, and what is no result is told."""

from __future__ import annotations

import json
import math

import pytest
from study_example import BASELINE, cell, result

from hfaccel.bench.report.reading import load, read
from hfaccel.errors import UsageError

WORK = {"kind": "shapes", "batch": 1, "length": 16}


def test_every_cell_and_trial_is_read():
    document = result()
    found = read(document)
    assert len(found.cells) == len(document["cells"])
    assert [trial.number for trial in found.tuning.trials] == list(range(24))
    assert found.subject == "random:bert-base" and found.baseline.to_dict() == BASELINE
    assert found.gemm_gflops == document["limits"]["gemm_gflops"] and found.bandwidth_gb_s == 164.2


def test_numbers_are_those_of_the_file_and_null_stays_unknown():
    row = cell(WORK, BASELINE, 20.0)
    found = read(result(cells=[row])).cells[0]
    assert found.number("p50_ms") == row["p50_ms"] and found.number("flops") is None
    assert found.number("allowed") == 0.02 and found.number("steal") == 0.002
    assert found.ratio is None and found.samples_ms == tuple(row["samples_ms"])


@pytest.mark.parametrize(
    "part", ["host", "versions", "axes", "limits", "tuning", "command", "date", "subject"]
)
def test_parts_may_be_null_or_missing(part):
    document = result(cells=[], **{part: None})
    read(document)
    del document[part]
    read(document)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cells": {}}, "`cells` of a result must be a list or null, but got {}"),
        ({"cells": [{"status": "fast"}]}, "must be one of measured, wrong, failed, skipped, but got 'fast'"),
        ({"cells": [cell(WORK, BASELINE, 1.0) | {"p50_ms": "3"}]}, "`p50_ms` of a result must be a finite"),
        ({"cells": [cell(WORK, BASELINE, 1.0) | {"p50_ms": True}]}, "must be a finite number or null"),
        ({"cells": [cell(WORK, BASELINE, 1.0) | {"p50_ms": math.nan}]}, "must be a finite number or null"),
        ({"baseline": {"backend": ""}}, "backend must be a name"),
        ({"subject": 3}, "`subject` of a result must be a text or null, but got 3"),
    ],
)
def test_what_breaks_a_rule_is_told(change, words):
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        read(result(cells=[]) | change)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 2, "cells": []}', "\0"])
def test_a_file_that_is_no_result_is_refused(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(UsageError):
        load(path)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result()))
    assert load(path) == read(result())
    with pytest.raises(UsageError, match=r"missing\.json"):
        load(tmp_path / "missing.json")

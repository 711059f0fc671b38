"""Each private part of torch and transformers is deleted, replaced and broken in turn: results stay stock's,
the report has the reason, and only what needs the part is left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import needs_kernels
from private_parts import CHANGES

import hfaccel
from hfaccel.doctor.checks import PrivateParts
from hfaccel.upstream import PROBES, TESTED, Need, Probe, of_pipelines, of_torch, of_transformers, versions

ROOT = Path(__file__).parent.parent
PARTS = {probe.place: probe for probe in PROBES}
CASES = [(place, change) for place in PARTS for change in CHANGES]
SINGLE = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}


def as_data(place, change):
    probe = PARTS[place]
    whole = change == "deleted" or not {Need.SAVING, Need.AUTO}.isdisjoint(probe.needs)
    return {"module": probe.module, "name": probe.name, "change": change, "whole": whole}


@pytest.fixture(scope="module")
def found():
    """What hfaccel did in each case; (place, change) -> data, without a change for ("", "")."""
    unchanged = {"module": "", "name": "", "change": "", "whole": True}
    cases = json.dumps([unchanged, *(as_data(*case) for case in CASES)])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("private_parts.py")), cases],
        capture_output=True,
        text=True,
        env={**os.environ, **SINGLE},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(f"{row['module']}.{row['name']}".strip("."), row["change"]): row for row in rows}


@needs_kernels
def test_with_every_part_as_it_is_all_is_done(found):
    row = found["", ""]
    assert row["error"] == "" and not any("as expected" in reason for reason in row["report"])
    assert row["packed"] and row["fused"] and row["prepared"] and row["loop"] and row["loaded"]
    assert row["saved"] == ""


@needs_kernels
@pytest.mark.parametrize(("place", "change"), CASES)
def test_without_a_part_results_are_stocks_and_the_report_has_the_reason(found, place, change):
    row, needs = found[place, change], PARTS[place].needs
    assert row["error"] == ""
    assert any(f"{place} is not as expected" in reason for reason in row["report"])
    assert row["packed"] == (Need.ENGINE not in needs)
    assert row["fused"] == ({Need.ENGINE, Need.LAYERS}.isdisjoint(needs))
    assert row["prepared"] == ({Need.ENGINE, Need.CONVOLUTIONS}.isdisjoint(needs))
    assert row["loop"] == (Need.PIPELINES not in needs)
    if Need.SAVING in needs:
        assert f"{place} is not as expected" in row["saved"]


@needs_kernels
def test_some_parts_were_changed_for_torch_and_transformers_themselves(found):
    assert sum(row.get("real", False) for row in found.values()) > 5


def test_every_part_is_as_expected_here():
    assert [probe.problem for probe in PROBES if probe.problem] == []


def test_no_part_has_two_probes():
    assert len(PARTS) == len(PROBES)


def test_a_part_that_is_not_there_is_told_and_not_raised():
    probe = Probe("torch", "no_such_part", "nothing", (), lambda found: True)
    PROBES.remove(probe)
    assert "AttributeError" in probe.problem and "tested with 2.10" in probe.problem
    assert probe.value("instead") == "instead"
    with pytest.raises(hfaccel.errors.HfaccelError, match="no_such_part"):
        probe.function()()


def test_a_part_is_looked_at_once(monkeypatch):
    looks = []
    probe = Probe("torch", "float32", "nothing", (), lambda found: looks.append(found) or True)
    PROBES.remove(probe)
    assert [probe.value(), probe.value(), probe.problem] == [probe.value(), probe.value(), ""]
    assert len(looks) == 1


def test_probes_leave_the_environment_alone(monkeypatch):
    monkeypatch.delenv(of_pipelines.PADDING, raising=False)
    vars(of_pipelines.PIPELINE).pop("_looked", None)
    assert of_pipelines.PIPELINE.problem == "" and of_pipelines.PADDING not in os.environ


def test_probes_hold_in_inference_mode_and_under_transforms():
    import torch

    def looked_at(values):
        for probe in [*vars(of_torch).values(), *vars(of_transformers).values()]:
            if isinstance(probe, Probe):
                vars(probe).pop("_looked", None)
                assert probe.problem == ""
        return values.sum()

    with torch.inference_mode():
        looked_at(torch.ones(1))
    torch.func.grad(looked_at)(torch.ones(1))


def test_tested_versions_begin_with_the_least_that_is_asked_for():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for package, first, _ in TESTED:
        least = ".".join(str(number) for number in first).removesuffix(".0")
        assert f"{package}>={least}" in asked


@pytest.mark.parametrize(
    ("version", "tested"),
    [("2.9.1", False), ("2.10.0+cpu", True), ("2.13.1", True), ("2.14.0a0", False), ("x", False)],
)
def test_versions_are_compared_by_their_first_two_numbers(version, tested):
    assert TESTED[0].include(version) == tested


def test_a_newer_version_is_named_by_doctor_and_nothing_else(monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda package: "99.0")
    finding = PrivateParts().find(None)
    assert finding.status == "ok" and "not tested with torch 99.0" in finding.message


def test_doctor_names_a_part_that_is_missing(monkeypatch):
    monkeypatch.setitem(vars(of_torch.SWAP), "_looked", (None, "torch._C._swap_tensor_impl is gone"))
    finding = PrivateParts().find(None)
    assert finding.status == "warning" and "weights are not packed: torch._C._swap" in finding.message
    assert "torch 2.10 to 2.13" in finding.advice

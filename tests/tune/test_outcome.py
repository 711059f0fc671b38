"""What a search has found, as text, profile and data."""

from __future__ import annotations

import json

import pytest
from simulated import host

from hfaccel.bench.statistics import Ratio
from hfaccel.plan.profile import parse_profile, problem_here
from hfaccel.tune.leaders import Standing
from hfaccel.tune.objective import Objective
from hfaccel.tune.outcome import Outcome, profile, text, tuning
from hfaccel.tune.space import Asked, make_space
from hfaccel.tune.trials import Trial

FACTS = host(4)
SPACE = make_space(FACTS, Asked(throughput=True, backends=("torch", "onnxruntime")))
SETTINGS = list(SPACE.settings)
WINNER = next(one for one in SETTINGS if one.instances == 4 and one.allocator == "jemalloc")
OTHER = next(one for one in SETTINGS if one.backend == "onnxruntime")
FOUND = [
    Trial(0, SPACE.default, "complete", 10.0, "", 5.0, {"p50_ms": 10.0}),
    Trial(1, WINNER, "complete", 5.0),
    Trial(2, OTHER, "failed", None, "its results differ by 0.1, and 0.002 is allowed"),
    Trial(3, SETTINGS[-1], "pruned", 20.0, "given up after 2 samples"),
]
CLEAR = Standing(WINNER, 5.0, 10.0, Ratio(2.1, 1.9, 2.2, 7))
NOISE = Standing(SETTINGS[5], 9.9, 10.0, Ratio(1.01, 0.9, 1.1, 21))
LOST = Standing(SETTINGS[6], problem="killed")


def outcome(*standings, **settings):
    objective = Objective("throughput", 90, 1000.0)
    return Outcome("a model", "(8,128)", objective, "sequences/s", SPACE, FOUND, standings, **settings)


def test_the_profile_of_the_winner_is_that_of_this_host_with_its_evidence():
    written = profile(outcome(NOISE, CLEAR, LOST), FACTS, "2026-11-28", {"torch": "2.13"})
    read = parse_profile(written)
    assert read.knobs["allocator"] == "jemalloc" and read.instances == {"count": 4, "cores": 1}
    assert read.model == {"backend": "torch", "precision": "fp32"}
    assert problem_here(read, FACTS) == "" and problem_here(read, host(5))
    evidence = read.evidence
    assert (evidence["gain"], evidence["gain_low"], evidence["pairs"]) == (2.0, 1.9, 7)
    assert (evidence["tuned"], evidence["default"]) == ("200 sequences/s", "100 sequences/s")
    assert (evidence["trials"], evidence["failed"], evidence["version_torch"]) == (4, 1, "2.13")
    assert "# Measured with hfaccel.optimize(model, backend='torch')" in written


@pytest.mark.parametrize("standings", [(), (NOISE, LOST)])
def test_without_a_winner_the_profile_sets_nothing(standings):
    read = parse_profile(profile(outcome(*standings), FACTS, "2026-11-28", {}))
    assert read.knobs == {} and read.instances == {} and "gain" not in read.evidence
    assert tuning(outcome(*standings))["best"] == 0


def test_the_data_are_json_and_name_the_best_and_the_default():
    data = json.loads(json.dumps(tuning(outcome(CLEAR, LOST)), allow_nan=False))
    assert (data["best"], data["default"], data["unit"]) == (1, 0, "sequences/s")
    assert [trial["value"] for trial in data["trials"]] == [100.0, 200.0, None, 50.0]
    assert data["trials"][2]["reason"].startswith("its results differ")
    assert data["leaders"][0]["ratio"]["median"] == 2.1 and data["leaders"][1]["reason"] == "killed"
    assert sum(data["importances"].values()) == pytest.approx(1, abs=0.01)


def test_what_breaks_the_limit_has_no_value():
    beyond = Outcome(
        "", "", Objective("throughput", 90, 10.0), "x/s", SPACE, [Trial(0, WINNER, "complete", 3e6)]
    )
    assert tuning(beyond)["trials"][0]["value"] is None
    assert "3 times beyond the limit" not in text(beyond) and "3 times the limit" in text(beyond)


def test_the_text_says_what_was_found_and_why_others_were_not():
    said = text(outcome(NOISE, CLEAR, LOST, unverified="no memory", notes=("other programs used 1.0 CPUs",)))
    for line in (
        "best: torch fp32, 1 threads, 4 instances, jemalloc",
        "1 failed: its results differ by 0.1",
        "1.010 times as good as the default (0.900 to 1.100, 21 pairs), which may be noise",
        "2.000 times as good as the default (1.900 to 2.200, 7 pairs)\n",
        "not compared with the default: killed",
        "not verified: no memory",
        "meanwhile other programs used 1.0 CPUs: figures are less certain",
        "in the program: hfaccel.optimize(model, backend='torch')",
    ):
        assert line in said
    assert "the default stays" in text(outcome(NOISE))

"""One group of sides, whose processes are stand-ins that are good, slow, wrong, or fail in every way."""

from __future__ import annotations

import pytest

from hfaccel.bench import group, side
from hfaccel.bench.grid import BASELINE, Group
from hfaccel.bench.setting import Setting
from hfaccel.bench.side import Ground, sides
from hfaccel.bench.work import Generation, Shapes
from hfaccel.bench.workers import Limits

pytestmark = pytest.mark.usefixtures("calm")

CASES = """
import os, sys, time
import numpy as np

SECONDS = {"eager": 1.0, "fast": 0.5, "slow": 2.0, "wrong": 0.1, "equal": 1.0}

def measure(subject, setting, work, output, seconds):
    name = setting["backend"] if subject != "broken" else "crashes"
    if name == "crashes":
        print("it broke", file=sys.stderr)
        os._exit(5)
    if name == "cannot":
        return lambda: {"seconds": 0.0, "skipped": "no such thing here"}
    np.save(output, np.full((2, 4), 2.0 if name == "wrong" else 1.0, np.float32))
    left = iter(range(3 if name == "stops" else 10**6))
    def sample():
        number = next(left, None)
        if number is None:
            os._exit(6)
        if name == "hangs":
            time.sleep(600)
        taken = SECONDS.get(name, 1.0) * (1 + 0.001 * np.random.rand()) * (50 if number == 0 else 1)
        threads = 1 if name == "fewer" else 2
        return {"seconds": taken, "calls": [taken] * 2, "facts": {}, "threads": threads, "page_faults": 3.0,
                "peak_memory_mib": 7.0, "warm_up": {"calls": 6, "ended": True}, "flops": 8.0}
    return sample

def judge(subject, work, files):
    if subject == "no judge":
        os._exit(7)
    return lambda: {"seconds": 0.0, "regrets": {name: 3.0 * float(np.load(file)[0, 0] - 0.9)
                                                for name, file in files.items()}}
"""


WORK = Shapes(8, 16)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """The cells of backends with these names, by name."""
    path = tmp_path / "cases.py"
    path.write_text(CASES)
    monkeypatch.setattr(side, "CASES", str(path))

    def measure(*names, work=WORK, subject="good", pairs=5, sample=60.0):
        ground = Ground(subject, 2, 0.1, str(tmp_path))
        chosen = tuple(map(Setting, names))
        cells = group.measure(ground, Group(work, chosen), pairs, Limits(60, sample))
        return {cell["setting"]["backend"]: cell for cell in cells}

    return measure


def test_each_side_has_its_ratio_to_the_baseline(measured):
    cells = measured("fast", "slow", "equal")
    assert [cell["status"] for cell in cells.values()] == ["measured"] * 4
    assert cells["eager"]["ratio"] is None and cells["eager"]["verified"] is None
    ratios = {name: cells[name]["ratio"] for name in ("fast", "slow", "equal")}
    assert [round(ratio["median"], 1) for ratio in ratios.values()] == [2.0, 0.5, 1.0]
    assert [ratio["significant"] for ratio in ratios.values()] == [True, True, False]
    assert {ratio["pairs"] for ratio in ratios.values()} == {5}
    fast = cells["fast"]
    assert (fast["throughput"], fast["threads"], fast["flops"]) == (pytest.approx(16, rel=0.01), 2, 8.0)
    assert fast["verified"]["largest_difference"] == 0.0
    assert len(fast["samples_ms"]) == 10 and max(fast["samples_ms"]) < 600  # the first turn does not count


def test_a_side_with_other_results_is_wrong_however_fast(measured):
    cell = measured("wrong")["wrong"]
    assert cell["status"] == "wrong" and "its results differ by 1" in cell["reason"]
    assert cell["verified"] == {"largest_difference": 1.0, "allowed": 0.002}


def test_failures_are_told_and_the_others_go_on(measured):
    cells = measured("crashes", "stops", "cannot", "fewer", "fast")
    told = {name: (cell["status"], cell["reason"]) for name, cell in cells.items()}
    assert told == {
        "eager": ("measured", ""),
        "crashes": ("failed", "it ended with exit code 5: it broke"),
        "stops": ("failed", "it ended with exit code 6"),
        "cannot": ("skipped", "no such thing here"),
        "fewer": ("failed", "it must have 2 threads, but has 1"),
        "fast": ("measured", ""),
    }
    assert cells["crashes"]["p50_ms"] is None


def test_a_side_that_hangs_is_ended(measured):
    cells = measured("hangs", "fast", sample=1.0)
    assert cells["hangs"]["reason"] == "it gave no answer within 1 seconds and was ended"
    assert cells["fast"]["status"] == "measured"


def test_without_a_baseline_nothing_is_said_of_the_others(measured):
    cells = measured("fast", subject="broken")
    assert [cell["status"] for cell in cells.values()] == ["failed", "failed"]


def test_the_baseline_alone_is_a_cell(measured):
    cells = measured()
    assert list(cells) == ["eager"] and cells["eager"]["p50_ms"] == pytest.approx(1000, rel=0.01)


def test_unclear_ratios_get_more_pairs(measured, monkeypatch):
    monkeypatch.setattr(group, "_is_settled", lambda base, side: False)
    assert measured("fast", pairs=2)["fast"]["ratio"]["pairs"] == 6


def test_generated_tokens_are_judged_by_how_far_they_lie_behind(measured):
    cells = measured("wrong", "fast", work=Generation(8, 4))
    assert cells["fast"]["verified"] == {"largest_difference": 0.0, "allowed": 0.01}
    assert cells["wrong"]["status"] == "wrong"
    assert cells["wrong"]["verified"]["largest_difference"] == pytest.approx(3.0)


def test_tokens_that_cannot_be_judged_are_a_failure(measured):
    cell = measured("fast", work=Generation(8, 4), subject="no judge")["fast"]
    assert cell["status"] == "failed"
    assert cell["reason"] == "its tokens could not be judged: it ended with exit code 7"


# How sides are started


GROUND = Ground("random:tiny", 2, 0.1, "/folder", ("OMP_NUM_THREADS",))


def test_the_stock_side_is_plain_python_with_all_cores():
    (one,) = sides(GROUND, Shapes(1, 8), BASELINE, "base")
    assert one.launcher[1:] == () and one.without == ("OMP_NUM_THREADS",)
    assert one.environment["OMP_NUM_THREADS"] == one.environment["MKL_NUM_THREADS"] == "2"
    assert one.arguments["setting"] == BASELINE.to_dict() and one.arguments["output"] == "/folder/base-0.npy"


def test_each_instance_is_a_process_of_hfaccel_run():
    found = sides(GROUND, Shapes(1, 8), Setting("torch", instances=2), "two")
    assert [one.launcher[-2:] for one in found] == [("--instance-idx", "0"), ("--instance-idx", "1")]
    assert all("OMP_NUM_THREADS" not in one.environment for one in found)
    assert len({one.arguments["output"] for one in found}) == 2


def test_a_users_variables_reach_no_side():
    given = ["OMP_NUM_THREADS", "LD_PRELOAD", "HFACCEL_AUTO", "HFACCEL_CACHE", "PATH", "KMP_AFFINITY"]
    assert side.cleared(given) == ("HFACCEL_AUTO", "KMP_AFFINITY", "LD_PRELOAD", "OMP_NUM_THREADS")

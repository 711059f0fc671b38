"""The decisions of benchmarks/scaling.py, its results and its picture. No times are taken."""

from __future__ import annotations

import argparse
import json
import os
import sys

import pytest

import report
import scaling
import scaling_picture
from hfaccel.bench import Side
from hfaccel.errors import HfaccelError
from scaling_bars import verdicts
from turns import Engines, taking_part


def row(case, ratio, threads=2, precision="fp32", **more):
    """As scaling.py writes it; hfaccel takes 10 ms."""
    base = f"hfaccel {precision}"
    ratio = {base: 1.0, **ratio}
    return {
        "name": f"{precision} {case}, threads: {threads}",
        "threads": threads,
        "precision": precision,
        "case": case,
        "ms": {name: 10 * value for name, value in ratio.items()},
        "ratio": ratio,
        "facts": {base: {"kernels": "avx2"}},
        "failed": {},
        "not_capped": {},
        **more,
    }


# Decisions


@pytest.mark.parametrize(
    ("cpus", "threads"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2]), (4, [2, 4]), (12, [2, 4, 8]), (64, [2, 4, 8, 16])],
)
def test_threads_are_limited_to_the_cpus(cpus, threads):
    assert scaling.default_threads(cpus) == threads


def test_each_core_gets_one_thread_before_any_gets_two():
    cores = ((0, 4), (1, 5), (2, 6), (3, 7))
    assert scaling.chosen_cpus(3, cores) == [0, 1, 2]
    assert scaling.chosen_cpus(6, cores) == [0, 1, 2, 3, 4, 5]
    assert scaling.chosen_cpus(2, ((0, 1), (2, 3))) == [0, 2]


def test_a_cell_has_all_its_turns_and_one_before_them():
    assert scaling.schedule([(1, 8), (8, 128)], 2) == [(1, 8)] * 3 + [(8, 128)] * 3


def test_cells_are_written_as_in_the_tables():
    assert scaling.cell_of("8,128") == scaling.cell_of("(8,128)") == (8, 128)


def test_who_takes_part():
    engines = ["eager", "openvino"]
    assert taking_part("int8", engines) == [("hfaccel", "int8"), ("eager", "fp32"), ("openvino", "int8")]
    assert ("eager", "bf16") in taking_part("bf16", engines)


def test_engines_that_are_not_installed_are_told():
    here = {"eager": "/usr/bin/python"}
    assert scaling.engines_here(["eager", "openvino"], lambda name: here.get(name, "")) == (
        ["eager"],
        ["openvino"],
    )


@pytest.mark.parametrize("told", [{"threads": 1, "cpus": [0, 1]}, {"threads": 2, "cpus": [0, 1, 2]}])
def test_unequal_threads_or_cpus_end_the_run(told):
    equal = {"threads": 2, "cpus": [0, 1]}
    scaling.check_equal({"hfaccel fp32": equal}, [0, 1])
    with pytest.raises(HfaccelError, match=r"must have 2 threads on the CPUs \[0, 1\], but eager fp32 has"):
        scaling.check_equal({"hfaccel fp32": equal, "eager fp32": told}, [0, 1])


def test_processes_started_while_pinned_keep_the_cpus_and_this_one_does_not():
    before = os.sched_getaffinity(0)
    with scaling.pinned([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


# Bars


def test_every_cell_is_judged_against_eager_and_openvino_and_all_cells_together():
    found = verdicts([row("(1,8)", {"eager fp32": 2.0, "openvino fp32": 1.02})])
    assert [(one["name"], one["measured"], one["bar"]) for one in found] == [
        ("fp32 (1,8), threads: 2 against eager fp32", 2.0, 1.0),
        ("fp32 (1,8), threads: 2 against openvino fp32", 1.02, 1.0),
        ("share of these at 1.05 or more", 0.5, 0.9),
    ]
    assert (found[0]["base_ms"], found[0]["fast_ms"]) == (20.0, 10.0)


def test_eager_may_take_the_precision_in_which_it_is_faster():
    ratios = {"eager fp32": 0.9, "eager bf16": 500.0, "openvino bf16": 1.2}
    found = verdicts([row("(1,8)", ratios, precision="bf16")])
    assert [one["measured"] for one in found[:2]] == [0.9, 1.2]


def test_an_hfaccel_that_did_not_start_has_missed_its_bar():
    failed = {"hfaccel int8": "the side hfaccel int8 ended with exit code 1"}
    found = verdicts([row("(1,8)", {"eager fp32": 1.0}, precision="int8", failed=failed)])
    assert found[0]["measured"] == 0.0 and "exit code 1" in found[0]["name"]


def test_what_is_not_capped_is_not_judged():
    ratios = {"eager fp32": 2.0, "openvino fp32": 0.5}
    assert len(verdicts([row("(1,8)", ratios, not_capped={"openvino fp32": "MLAS"})])) == 2
    assert verdicts([row("(1,8)", ratios, not_capped={"hfaccel fp32": "its kernel set is unknown"})]) == []


def test_instances_have_a_bar_of_their_own():
    instances = {"name": "one process", "measured": 0.9, "bar": 0.8, "per_second": {}}
    assert verdicts([instances]) == [instances]


# Results


def options(folder, **more):
    asked = {"isa": None, "results": folder, "picture": "svg", "cells": [(1, 8), (1, 32)]}
    return argparse.Namespace(**asked, **more)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """main() with these rows in the place of measurements; the last may be an exception."""

    def run(*rows):
        def rows_of(_):
            for one in rows:
                if isinstance(one, BaseException):
                    raise one
                yield one

        monkeypatch.setattr(scaling, "parse", lambda: options(tmp_path))
        monkeypatch.setattr(scaling, "prepare", lambda _: None)
        monkeypatch.setattr(scaling, "rows_of", rows_of)
        return scaling.main()

    return run


def saved(folder):
    return json.loads(next(folder.glob("*-scaling.json")).read_text())


def test_it_ends_with_0_where_all_bars_are_reached_and_with_1_where_one_is_missed(measured, capsys):
    assert measured(row("(1,8)", {"eager fp32": 2.0, "openvino fp32": 1.2})) == 0
    assert measured(row("(1,8)", {"eager fp32": 2.0, "openvino fp32": 0.9})) == 1
    assert "NO" in capsys.readouterr().out


def test_a_run_in_which_nothing_was_judged_says_so(measured, capsys):
    ratios = {"eager fp32": 0.5}
    assert measured(row("(1,8)", ratios, not_capped={"hfaccel fp32": "its kernel set is unknown"})) == 0
    printed = capsys.readouterr().out
    assert "no bar was judged" in printed
    assert "hfaccel fp32 is not capped: its kernel set is unknown" in printed


def test_an_interrupted_run_keeps_the_cells_that_it_has(measured, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        measured(row("(1,8)", {"eager fp32": 2.0}), KeyboardInterrupt())
    assert [one["case"] for one in saved(tmp_path)["rows"]] == ["(1,8)"]


def test_a_later_run_of_other_cells_adds_to_the_day(measured, tmp_path):
    measured(row("(1,8)", {"eager fp32": 2.0}), row("(1,32)", {"eager fp32": 2.0}))
    measured(row("(1,8)", {"eager fp32": 3.0}), row("(1,8)", {"eager fp32": 4.0}, threads=1))
    ratios = {(one["threads"], one["case"]): one["ratio"]["eager fp32"] for one in saved(tmp_path)["rows"]}
    assert ratios == {(2, "(1,32)"): 2.0, (2, "(1,8)"): 3.0, (1, "(1,8)"): 4.0}


def test_results_name_the_host_the_versions_and_the_kernel_set(measured, tmp_path):
    measured(row("(1,8)", {"eager fp32": 2.0}))
    document = saved(tmp_path)
    facts = ("processor", "instructions", "kernels", "cpus", "cores", "memory_gib", "torch", "transformers")
    assert all(document[fact] for fact in facts)
    assert document["rows"][0]["facts"]["hfaccel fp32"]["kernels"] == "avx2"


def test_a_row_has_the_median_of_the_ratios_within_turns(tmp_path):
    case = tmp_path / "case.py"
    case.write_text(
        "import os\n"
        "def taking(seconds):\n"
        "    turns = iter(seconds)\n"
        "    facts = {'threads': 1, 'cpus': sorted(os.sched_getaffinity(0))}\n"
        "    return lambda: {'seconds': next(turns), 'facts': facts}\n"
    )
    times = {"hfaccel fp32": [9, 1, 2, 4], "eager fp32": [9, 3, 4, 4]}  # the first turn does not count
    cpus = [min(os.sched_getaffinity(0))]
    with scaling.pinned(cpus):
        sides = [
            Side(name, f"{case}:taking", {"seconds": taken}, (sys.executable,))
            for name, taken in times.items()
        ]
        running = Engines(sides)
    try:
        given = argparse.Namespace(rounds=3, isa=None, host=argparse.Namespace(processor=None))
        found = scaling.row_of((1, 8), 1, "fp32", running, cpus, given)
    finally:
        running.stop()
    assert found["ratio"] == {"hfaccel fp32": 1.0, "eager fp32": 2.0}
    assert [turn["eager fp32"] for turn in found["ratios"]] == [3.0, 2.0, 1.0]
    assert found["ms"] == {"hfaccel fp32": 2000, "eager fp32": 4000}


# The picture


def test_lines_go_by_threads_and_points_by_shape():
    rows = [
        row("(8,128)", {"eager fp32": 1.5}, threads=16),
        row("(1,128)", {"eager fp32": 2.5}, threads=16),
        row("(1,8)", {"eager fp32": 3.5}, threads=2, not_capped={"hfaccel fp32": "unknown"}),
    ]
    assert scaling_picture.points(rows, "eager", "fp32") == {
        2: [("(1,8)", 3.5, False)],
        16: [("(1,128)", 2.5, True), ("(8,128)", 1.5, True)],
    }


def test_the_axis_has_one_and_every_point_within():
    rows = [row("(1,8)", {"eager fp32": 3.5}), row("(1,32)", {"eager fp32": 0.8})]
    low, high = scaling_picture.limits(rows, "eager")
    assert low < 0.8 and high > 3.5
    assert scaling_picture.limits(rows[:1], "eager")[0] < 1


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_picture_is_drawn_of_the_saved_results(kind, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [row("(1,8)", {"eager fp32": 3.5}), row("(1,8)", {"eager fp32": 2.5}, threads=16)]
    file = report.save("scaling", rows, tmp_path)
    picture = tmp_path / f"scaling.{kind}"
    scaling_picture.draw(file, picture)
    assert picture.stat().st_size > 5000


def test_lines_differ_without_their_colour():
    marks, dashes, greys = zip(*scaling_picture.STYLES, strict=True)
    assert len(set(marks)) == len(set(map(str, dashes))) == len(marks)
    assert all(grey == "black" or 0 <= float(grey) <= 0.6 for grey in greys)

"""Bars of benchmarks/backends.py: who counts as the best peer, and what is judged. No times are taken."""

from __future__ import annotations

import pytest

from backends import SHAPES, judge
from bars import AMX, AVX2, BARS, BERT, EAGER, PUBLISHED, Bar, best, judged
from turns import ENGINES, taking_part


def row(engine, ratio, case="bert-base", precision="fp32", **more):
    return {"engine": engine, "ratio": ratio, "case": case, "precision": precision, **more} | {
        "base": more.get("base", f"hfaccel {precision}")
    }


PEERS = ("openvino fp32", "onnxruntime fp32")
BAR = Bar("bert-base", "fp32", PEERS, {"(1,16)": 1.0, "(8,16)": 1.0}, better=(1.1, 1))
ROWS = [
    row("hfaccel fp32", {"(1,16)": 1.0, "(8,16)": 1.0}),
    row("eager fp32", {"(1,16)": 0.1, "(8,16)": 0.1}),
    row("openvino fp32", {"(1,16)": 1.3, "(8,16)": 0.9}),
    row("onnxruntime fp32", {"(1,16)": 1.2, "(8,16)": 1.4}),
]


def test_the_best_is_who_takes_least_time():
    assert best({"a": 1.4, "b": 1.2, "c": 0.5}, ("a", "b")) == ("b", 1.2)


def test_there_is_no_best_where_none_ran():
    assert best({"c": 0.5}, ("a", "b")) is None


def test_each_cell_is_judged_against_its_best_rival():
    assert judged(ROWS, [BAR]) == [
        {"name": "bert-base (1,16) fp32 against onnxruntime fp32", "measured": 1.2, "bar": 1.0},
        {"name": "bert-base (8,16) fp32 against openvino fp32", "measured": 0.9, "bar": 1.0},
        {"name": "bert-base fp32: cells at 1.1 or more", "measured": 1, "bar": 1},
    ]


def test_a_rival_that_is_not_capped_does_not_count():
    rows = [*ROWS[:2], {**ROWS[2], "not_capped": "MLAS"}, ROWS[3]]
    assert [verdict["measured"] for verdict in judged(rows, [BAR])] == [1.2, 1.4, 2]


def test_a_cell_without_a_fair_rival_is_not_judged():
    assert judged(ROWS[:2], [BAR]) == []


def test_a_part_of_the_cells_is_judged_without_the_rule_about_all_of_them():
    rows = [{**one, "ratio": {"(1,16)": one["ratio"]["(1,16)"]}} for one in ROWS]
    assert [verdict["bar"] for verdict in judged(rows, [BAR])] == [1.0]


def test_rows_of_a_run_without_hfaccel_are_not_judged():
    assert judged([{**one, "base": "eager fp32"} for one in ROWS], [BAR]) == []


def test_a_rival_that_failed_is_left_out():
    failed = {"engine": "openvino fp32", "case": "bert-base", "precision": "fp32", "failed": "no such file"}
    assert judged([*ROWS[:2], failed, ROWS[3]], [BAR])[1]["measured"] == 1.4


def test_a_case_of_one_cell_is_named_once():
    case = "512 texts in input order"
    bar = Bar(case, "fp32", EAGER, {case: 2.7})
    [verdict] = judged([row("eager fp32", {case: 3.0}, case)], [bar])
    assert verdict == {"name": f"{case} fp32 against eager fp32", "measured": 3.0, "bar": 2.7}


@pytest.mark.parametrize(("ratio", "end"), [(1.2, 0), (0.9, 1)])
def test_the_bars_are_those_of_the_kernels_that_were_used(ratio, end, capsys):
    cells = dict.fromkeys(BERT, ratio)
    rows = [row("hfaccel fp32", dict.fromkeys(BERT, 1.0), kernels="avx2_fp32"), row("openvino fp32", cells)]
    assert judge(rows) == end
    assert "bars of the kernel set avx2_fp32" in capsys.readouterr().out


def test_without_bars_for_the_kernels_nothing_is_missed_and_that_is_told(capsys):
    assert judge([row("hfaccel fp32", {"(1,16)": 1.0}, kernels="avx512")]) == 0
    assert "no bars for hfaccel's kernel set 'avx512'" in capsys.readouterr().out


@pytest.mark.parametrize("bars", BARS.values())
def test_bars_name_sides_of_the_benchmark(bars):
    for bar in bars:
        known = {f"{engine} {kind}" for engine, kind in taking_part(bar.precision, ENGINES)}
        assert set(bar.rivals) <= known


def test_bars_name_cells_of_the_benchmark():
    cells = {model: {f"({batch},{length})" for batch, length in shapes} for model, shapes in SHAPES.items()}
    for bar in (*AVX2, *AMX):
        assert set(bar.least) <= cells.get(bar.case, {bar.case})
    assert set(BERT) == cells["bert-base"]


def test_amx_may_lose_three_percent_of_the_published_figures_and_no_more():
    for kept, told in zip(AMX, PUBLISHED, strict=True):
        assert kept.least == {
            cell: pytest.approx(0.97 * value, abs=1e-3) for cell, value in told.least.items()
        }

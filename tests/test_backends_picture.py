"""The picture of README.md. No times are taken."""

from __future__ import annotations

import json

import pytest

import backends_picture
from report import RESULTS


def row(engine, ratio, precision="fp32", case="bert-base"):
    return {"engine": engine, "precision": precision, "case": case, "ratio": ratio}


def test_a_bar_is_the_median_over_the_shapes_and_the_fastest_comes_first():
    rows = [
        row("eager fp32", {"(1,16)": 3.0, "(1,128)": 2.0, "(8,128)": 1.5}),
        row("hfaccel fp32", {"(1,16)": 1.0, "(1,128)": 1.0, "(8,128)": 1.0}),
        row("eager fp32", {"(1,16)": 9.0}, precision="bf16"),
        row("openvino fp32", {"(1,8)": 0.5}, case="minilm"),
        {"engine": "ctranslate2 fp32", "precision": "fp32", "case": "bert-base", "failed": "not installed"},
    ]
    assert backends_picture.bars(rows, "fp32") == [
        ("hfaccel", "fp32", 1.0, 1.0, 1.0),
        ("eager", "fp32", 2.0, 1.5, 3.0),
    ]
    assert backends_picture.bars(rows, "bf16")[0].label("bf16") == "transformers, float32"


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_picture_is_drawn_of_committed_results(kind, tmp_path):
    pytest.importorskip("matplotlib")
    file = RESULTS / "2026-11-26-backends.json"
    picture = tmp_path / f"backends.{kind}"
    backends_picture.draw(file, picture)
    assert picture.stat().st_size > 5000
    if kind == "svg":
        assert json.loads(file.read_text())["processor"] in picture.read_text()

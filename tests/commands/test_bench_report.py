"""`hfaccel bench report`: where the page and the pictures go, and what is refused."""

from __future__ import annotations

import builtins
import json
import struct

import pytest

from hfaccel.commands import main

SETTING = {"backend": "torch", "precision": "bf16", "allocator": "auto"}


def shape(batch, length, ratio):
    work = {"kind": "shapes", "batch": batch, "length": length}
    ratio = {"to": "baseline", "median": ratio, "low": 1.0, "high": 3.0, "significant": ratio > 2, "pairs": 7}
    return {"work": work, "setting": SETTING, "status": "measured", "p50_ms": length / 8, "ratio": ratio}


@pytest.fixture
def result(tmp_path):
    path = tmp_path / "study.json"
    cells = [shape(1, 16, 1.5), shape(1, 128, 2.5)]
    path.write_text(json.dumps({"format": 1, "subject": "a model", "cells": cells}))
    return path


def report(capsys, *arguments):
    code = main(["bench", "report", *map(str, arguments)])
    return (code, *capsys.readouterr())


def test_the_page_lies_beside_the_result(result, capsys):
    code, out, error = report(capsys, result)
    page = result.with_suffix(".html")
    assert (code, out, error) == (0, f"{page}\n", "")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and "<h1>a model</h1>" in text


def test_the_page_goes_where_it_is_wanted(result, tmp_path, capsys):
    assert report(capsys, result, "--out", tmp_path / "page.html")[0] == 0
    assert (tmp_path / "page.html").is_file() and not result.with_suffix(".html").exists()


def test_each_picture_is_written_as_png(result, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    code, out, _ = report(capsys, result, "--png", tmp_path / "pictures")
    names = ["speedup.png", "latency-by-length.png"]
    assert code == 0 and out.splitlines()[1:] == [str(tmp_path / "pictures" / name) for name in names]
    for name in names:
        head = (tmp_path / "pictures" / name).read_bytes()[:24]
        width, height = struct.unpack(">II", head[16:24])
        assert head.startswith(b"\x89PNG") and width > 600 and height > 300


def test_pictures_show_what_the_page_shows(result, tmp_path, capsys):
    """A tile with colour, an outlined one, and the line with its two marks."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    report(capsys, result, "--png", tmp_path)
    colours = {
        name: image.open(tmp_path / f"{name}.png").convert("RGB").getcolors(1 << 24)
        for name in ("speedup", "latency-by-length")
    }
    assert any(blue > red + 25 for _, (red, _, blue) in colours["speedup"])
    assert any(
        (red, green, blue) == (0x0B, 0x62, 0xA8) for _, (red, green, blue) in colours["latency-by-length"]
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [("{}", "must be written by hfaccel bench"), ("[", "must be JSON"), (None, "no.json")],
)
def test_what_is_no_result_is_one_line(tmp_path, capsys, text, words):
    path = tmp_path / "no.json"
    if text is not None:
        path.write_text(text)
    code, out, error = report(capsys, path)
    assert (code, out) == (2, "") and words in error and error.count("\n") == 1
    assert not path.with_suffix(".html").exists()


def test_a_page_needs_a_folder_and_never_replaces_the_result(result, tmp_path, capsys):
    before = result.read_text()
    code, _, error = report(capsys, result, "--out", tmp_path / "none" / "page.html")
    assert code == 2 and "must be in a folder that exists" in error
    code, _, error = report(capsys, result, "--out", result)
    assert code == 2 and "must not replace the result" in error and result.read_text() == before
    code, _, error = report(capsys, result, "--out", tmp_path)
    assert code == 1 and "the page cannot be written" in error


def test_without_matplotlib_the_remedy_is_told_before_anything_is_written(
    result, tmp_path, capsys, monkeypatch
):
    original = builtins.__import__

    def without(name, *others, **more):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError("no matplotlib here")
        return original(name, *others, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    code, _, error = report(capsys, result, "--png", tmp_path / "pictures")
    assert code == 1 and "pip install 'hfaccel[plots]'" in error
    assert not result.with_suffix(".html").exists()

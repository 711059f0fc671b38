"""hfaccel bench memory: real processes at the smallest size, options, tables, pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfaccel.commands import bench_memory, main
from hfaccel.commands.bench import KINDS
from hfaccel.host import read_host

PROGRAM = str(Path(sys.executable).with_name("hfaccel"))
SMALL = ["bench", "memory", "--quick", "--workload", "odd above 2 MiB, touched"]
HUGE_PAGES = read_host().memory.thp in ("always", "madvise")


def hfaccel(*arguments):
    environment = {**os.environ, "COLUMNS": "140"}
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=200, env=environment)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(what was printed, the saved report, the folder) of one small run with a picture."""
    folder = tmp_path_factory.mktemp("memory")
    saved, picture = str(folder / "report.json"), str(folder / "picture.svg")
    done = hfaccel(*SMALL, "--only", "glibc-tuned,hfaccel", "--save", saved, "--picture", picture)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done, json.loads(Path(saved).read_text()), folder


def rows(report):
    (workload,) = report["workloads"]
    return {row["way"]: row for row in workload["results"]}


def test_the_report_has_every_figure_of_every_way(measured):
    _, report, _ = measured
    assert list(rows(report)) == ["default", "glibc-tuned", "hfaccel"]
    for row in rows(report).values():
        assert row["failure"] == "" and row["first_seconds"] > 0 and row["seconds"] > 0
        assert row["peak"] > 0 and row["again_ratio"] > 0 and len(row["buffers"]) == 10
        assert row["layout"]["bytes"] == sum(size for _, size, _ in row["buffers"])
    assert report["alignment"]["verdict"] in ("old", "new", "none", "unclear")
    assert report["quick"] and report["rounds"] == 1


def test_each_way_is_what_its_name_says(measured):
    _, report, _ = measured
    assert rows(report)["default"]["allocator"].startswith("libc")
    found = read_host().allocators
    if found:  # hfaccel-run preloads the first of them
        assert (
            found[0].path.rpartition("/")[2].startswith(rows(report)["hfaccel"]["allocator"].split(".so")[0])
        )
    assert rows(report)["default"]["again_ratio"] == 1


@pytest.mark.skipif(not HUGE_PAGES, reason="needs huge pages on request")
def test_an_arena_has_its_buffers_side_by_side_on_huge_pages(measured):
    row = rows(measured[1])["hfaccel"]
    assert row["huge"] > 0.99 and row["layout"]["gaps"]["median"] == 0
    assert row["first_faults"] < 1000  # 4 KiB pages would take 7,500


def test_the_tables_say_what_the_kernel_does_and_what_is_missing(measured):
    done, report, _ = measured
    assert report["alignment"]["text"] in done.stdout
    assert "odd above 2 MiB, touched" in done.stdout and "glibc-tuned" in done.stdout
    for row in rows(report).values():
        assert all(reason in done.stdout for reason in row["uncounted"].values())


def test_the_picture_has_a_strip_for_each_way(measured):
    picture = (measured[2] / "picture.svg").read_text()
    assert picture.startswith("<?xml") and "</svg>" in picture


def test_a_saved_report_is_shown_again_and_drawn(measured):
    done, report, folder = measured
    again = hfaccel(
        "bench", "memory", "--read", str(folder / "report.json"), "--picture", str(folder / "again.png")
    )
    assert again.returncode == 0 and again.stdout == done.stdout
    assert (folder / "again.png").read_bytes().startswith(b"\x89PNG")
    bench_memory.draw(report, str(folder / "again.svg"))
    assert (folder / "again.svg").read_bytes() == (folder / "picture.svg").read_bytes()
    as_json = hfaccel("bench", "memory", "--read", str(folder / "report.json"), "--json")
    assert json.loads(as_json.stdout) == report


def test_a_failed_way_is_shown_and_ends_with_1(measured, tmp_path, capsys):
    _, report, _ = measured
    report = json.loads(json.dumps(report))
    report["workloads"][0]["results"][1] = {"way": "glibc-tuned", "failure": "it ended with exit code -9"}
    path = tmp_path / "failed.json"
    path.write_text(json.dumps(report))
    assert main(["bench", "memory", "--read", str(path), "--picture", str(tmp_path / "p.svg")]) == 1
    shown = capsys.readouterr().out
    assert "Failed: it ended with exit code -9." in shown and "failed" in shown


def test_misses_are_a_column_where_they_are_counted(measured, tmp_path, capsys):
    _, report, _ = measured
    report = json.loads(json.dumps(report))
    for row in report["workloads"][0]["results"]:
        row["events"] = {"dtlb_load_misses": 12_000, "dtlb_store_misses": 345.0}
    path = tmp_path / "counted.json"
    path.write_text(json.dumps(report))
    assert main(["bench", "memory", "--read", str(path)]) == 0
    assert "12,345" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "said"),
    [("smaps", "by mapping, which"), ("", "pages cannot be read"), ("PAGEMAP_SCAN", "of the whole process")],
)
def test_what_could_not_be_read_of_huge_pages_is_said(measured, tmp_path, capsys, source, said):
    _, report, _ = measured
    report = json.loads(json.dumps(report))
    for row in report["workloads"][0]["results"]:
        row.update(source=source, unread="it was refused", huge=None)
    path = tmp_path / "unread.json"
    path.write_text(json.dumps(report))
    assert main(["bench", "memory", "--read", str(path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "it was refused" in line]
    assert said in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nonsense"], "a configuration must be one of default, torch-thp, mimalloc"),
        (["--workload", "nonsense"], "there are: 512 KiB to 1.5 MiB, touched, 1 thread"),
        (["--rounds", "0"], "`rounds >= 1` must hold, but got 0"),
        (["--threads", "0"], "`threads >= 1` must hold, but got 0"),
        (["--picture", "x.gif"], "a picture must end in .svg, .png, .pdf, but got 'x.gif'"),
        (["--picture", "/nonexistent/x.svg"], "a picture must be in a folder that exists"),
        (["--save", "/nonexistent/x.json"], "a file must be in a folder that exists"),
        (["--read", "/nonexistent"], "a saved report must be JSON"),
        (["--read", __file__], "a saved report must be JSON"),
    ],
)
def test_bad_options_are_one_line_before_anything_is_measured(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("hfaccel.bench.memory.rounds._sample", None)
    assert main(["bench", "memory", "--quick", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hfaccel: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("text", ["{}", "[]", "1", '{"format": "another"}'])
def test_other_json_is_no_report(text, tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text(text)
    assert main(["bench", "memory", "--read", str(path)]) == 2
    assert "must be one of `hfaccel bench memory --save`" in capsys.readouterr().err


def test_without_matplotlib_a_picture_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(bench_memory, "_measured", None)
    assert main(["bench", "memory", "--picture", "x.svg"]) == 1
    assert "pip install 'hfaccel[plots]'" in capsys.readouterr().err


def test_help_lists_the_kinds():
    done = hfaccel("bench", "--help")
    assert all(kind in done.stdout and meaning in done.stdout for kind, meaning in KINDS.items())
    done = hfaccel("bench", "memory", "--help")
    assert done.returncode == 0 and "--picture" in done.stdout


def test_something_to_measure_must_be_given():
    done = hfaccel("bench")
    assert done.returncode == 2 and done.stdout == "" and "memory" in done.stderr

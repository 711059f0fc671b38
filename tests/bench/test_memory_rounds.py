"""The ways that a host has, and the rounds over them: order, fresh processes, failures, ratios."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hfaccel import native
from hfaccel.bench import Side, Worker
from hfaccel.bench.memory import Setting, Way, Workload, find_ways, measure
from hfaccel.bench.memory import rounds as measuring
from hfaccel.bench.memory.rounds import paired_ratios, result, rotated, side
from hfaccel.bench.memory.ways import cleared, select
from hfaccel.errors import UsageError
from hfaccel.host import Library, read_host

FACTS = read_host()

CASES = """
import json, os, sys

def place(log, configure, arena, fails=""):
    name = os.environ["WAY"]
    with open(log, "a") as file:
        file.write(json.dumps([name, os.getpid(), configure, arena, dict(os.environ)]) + "\\n")
    if name == fails:
        sys.exit(3)
    seconds = {"default": 4.0, "quick": 1.0}[name]
    return lambda: {
        "first_seconds": 2 * seconds, "first_faults": 5, "seconds": seconds, "faults": 1,
        "events": {"dtlb_load_misses": 7}, "uncounted": {}, "peak": 100, "allocator": "libc.so.6",
        "threads": 1, "buffers": [[4096, 10, 1.0], [8192, 30, 0.0]], "huge": 0.25, "source": "smaps",
        "process_huge": 3, "unread": "",
    }
"""
WAYS = (
    Way("default", "as it is", {"WAY": "default"}),
    Way("quick", "another", {"WAY": "quick"}, arena=True),
    Way("absent", "not here", missing="not found"),
)


@pytest.fixture
def rounds(tmp_path, monkeypatch):
    """Measures the ways above, with a case of our own; answers (results, what each process saw)."""
    (tmp_path / "cases.py").write_text(CASES)
    monkeypatch.setattr(measuring, "CASES", str(tmp_path / "cases.py"))
    log = tmp_path / "log"

    def run(count=3, **arguments):
        workload = Workload("a workload", "place", {"log": str(log), **arguments})
        (measured,) = measure(Setting(WAYS, (workload,), count))
        return measured, [json.loads(line) for line in log.read_text().splitlines()]

    return run


def test_each_sample_has_a_process_of_its_own_and_the_ways_take_turns(rounds):
    measured, seen = rounds()
    assert [name for name, *_ in seen] == ["default", "quick", "quick", "default", "default", "quick"]
    assert len({pid for _, pid, *_ in seen}) == 6
    assert {(name, arena) for name, _, _, arena, _ in seen} == {("default", False), ("quick", True)}
    assert [row["way"] for row in measured["results"]] == ["default", "quick"]
    json.dumps(measured)


def test_results_are_medians_with_ratios_by_round(rounds):
    measured, _ = rounds(2)
    quick = measured["results"][1]
    assert quick["again_ratio"] == quick["first_ratio"] == 4.0 and quick["again_ratios"] == [4.0, 4.0]
    assert quick["seconds"] == 1.0 and quick["events"] == {"dtlb_load_misses": 7}
    assert quick["layout"]["gaps"]["largest"] == 4086 and quick["failure"] == ""


@pytest.mark.parametrize("fails", ["default", "quick"])
def test_a_process_that_fails_is_a_reason_and_the_others_go_on(rounds, fails):
    measured, seen = rounds(2, fails=fails)
    assert len(seen) == 4
    rows = {row["way"]: row for row in measured["results"]}
    other = rows["quick" if fails == "default" else "default"]
    assert rows[fails]["failure"] == f"the side {fails} (a workload) ended with exit code 3"
    assert "seconds" not in rows[fails]
    assert other["seconds"] and other["again_ratio"] == (None if fails == "default" else 1.0)


def test_what_would_change_a_way_is_not_inherited(rounds, monkeypatch):
    for name in (
        "MALLOC_ARENA_MAX",
        "GLIBC_TUNABLES",
        "THP_MEM_ALLOC_ENABLE",
        "OMP_NUM_THREADS",
        "MIMALLOC_X",
    ):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MALLOCATOR", "mine")
    _, seen = rounds(1)
    for *_, environment in seen:
        assert environment["MALLOCATOR"] == "mine"
        assert not [name for name in environment if name in cleared(os.environ)]
    assert "OMP_NUM_THREADS" in cleared(os.environ) and "MALLOCATOR" not in cleared(os.environ)


def test_a_side_sets_what_it_also_clears(tmp_path, monkeypatch):
    (tmp_path / "case.py").write_text(
        "import os\ndef case():\n    return lambda: {'seen': os.environ['X_Y']}\n"
    )
    monkeypatch.setenv("X_Y", "outer")
    mine = Side("a", f"{tmp_path / 'case.py'}:case", environment={"X_Y": "inner"}, without=("X_Y",))
    with Worker(mine) as worker:
        assert worker.sample() == {"seen": "inner"}


@pytest.mark.parametrize("count", [0, -1])
def test_there_is_at_least_one_round(count):
    with pytest.raises(UsageError, match=f"`rounds >= 1` must hold, but got {count}"):
        measure(Setting(WAYS, (), count))


def test_everybody_begins_once():
    firsts = [rotated(WAYS, number)[0].name for number in range(6)]
    assert firsts == ["default", "quick", "absent"] * 2
    assert all(sorted(rotated(WAYS, number)) == sorted(WAYS) for number in range(4))
    assert rotated([], 3) == []


def test_ratios_are_of_the_same_round():
    base = [{"seconds": 4.0}, None, {"seconds": 9.0}, {"seconds": 1.0}]
    other = [{"seconds": 2.0}, {"seconds": 1.0}, {"seconds": 3.0}, None]
    assert paired_ratios(base, other, "seconds") == [2.0, 3.0]
    assert paired_ratios([], other, "seconds") == []


def test_a_way_without_samples_has_its_failure():
    assert result("a", {"a": [None]}, "ended") == {"way": "a", "failure": "ended"}


# Ways


def test_all_ways_are_listed_whether_they_can_run_or_not():
    facts = FACTS._replace(libc="glibc", allocators=(Library("tcmalloc", "/lib/libtcmalloc_minimal.so.4"),))
    ways = {way.name: way for way in find_ways(facts, 3, trial=lambda path: "")}
    assert list(ways) == [
        "default",
        "torch-thp",
        "mimalloc",
        "jemalloc",
        "tcmalloc",
        "glibc-tuned",
        "hfaccel",
    ]
    assert ways["tcmalloc"].environment == {"LD_PRELOAD": "/lib/libtcmalloc_minimal.so.4"}
    assert "libjemalloc.so.2" in ways["jemalloc"].missing and not ways["tcmalloc"].missing
    assert ways["hfaccel"].launcher[-2:] == ("--threads", "3") and ways["hfaccel"].arena
    assert ways["glibc-tuned"].configure and ways["glibc-tuned"].missing == native.MISSING


def test_an_allocator_that_the_loader_refuses_is_left_out():
    facts = FACTS._replace(allocators=(Library("jemalloc", "/x/libjemalloc.so.2"),))
    ways = {way.name: way for way in find_ways(facts, 1)}  # the real loader
    assert ways["jemalloc"].missing.startswith("/x/libjemalloc.so.2 is refused by the loader")


def test_another_libc_cannot_be_tuned():
    ways = {way.name: way for way in find_ways(FACTS._replace(libc="musl"), 1)}
    assert ways["glibc-tuned"].missing == "the libc is musl"


def test_the_default_is_always_measured():
    assert [way.name for way in select(WAYS, ["quick"])] == ["default", "quick"]
    assert select(WAYS, []) == WAYS


@pytest.mark.parametrize(
    ("name", "message"),
    [("slow", "one of default, quick, absent, but got 'slow'"), ("absent", "absent is not: not found")],
)
def test_a_way_that_cannot_be_measured_is_refused_by_name(name, message):
    with pytest.raises(UsageError, match=message):
        select(WAYS, [name])


def test_a_case_is_given_what_its_way_wants():
    wanted = side(WAYS[1], Workload("w", "buffers", {"count": 1}), {"OMP_X": "1", "PATH": "/"})
    assert wanted.arguments == {"count": 1, "configure": False, "arena": True}
    assert wanted.without == ("OMP_X",)
    path, _, function = wanted.case.rpartition(":")
    assert function == "buffers" and Path(path).name == "cases.py"

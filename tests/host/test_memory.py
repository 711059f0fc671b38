"""RAM and the state of transparent huge pages."""

from __future__ import annotations

import pytest

from hfaccel.host.memory import read_memory
from hfaccel.host.tree import Tree

THP = "sys/kernel/mm/transparent_hugepage"


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def put(tree, name, text):
    path = tree.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("[always] madvise never\n", "always"),
        ("always [madvise] never\n", "madvise"),
        ("always madvise [never]\n", "never"),
    ],
)
def test_the_mode_is_the_word_in_brackets(tree, text, mode):
    put(tree, f"{THP}/enabled", text)
    assert read_memory(tree).thp == mode
    assert tree.problems == []


@pytest.mark.parametrize("text", [None, "", "always madvise never"])
def test_without_a_selected_mode_there_are_no_huge_pages(tree, text):
    if text is not None:
        put(tree, f"{THP}/enabled", text)
    assert read_memory(tree).thp == "absent"


def test_an_unknown_mode_is_a_problem(tree):
    put(tree, f"{THP}/enabled", "always [inherit] never")
    assert read_memory(tree).thp == "absent"
    (problem,) = tree.problems
    assert problem.startswith(f"/{THP}/enabled: ")
    assert "'inherit'" in problem


def test_defrag_is_the_word_in_brackets(tree):
    put(tree, f"{THP}/defrag", "always defer [defer+madvise] madvise never\n")
    assert read_memory(tree).thp_defrag == "defer+madvise"


def test_total_is_in_bytes(tree):
    put(tree, "proc/meminfo", "MemFree: 1 kB\nMemTotal:       65791232 kB\nSwapTotal: 7 kB\n")
    assert read_memory(tree).total == 65791232 * 1024


@pytest.mark.parametrize(
    "text", ["", "MemTotal:", "MemTotal: x kB", "MemTotal: -1 kB", "MemTotal: " + "9" * 5000]
)
def test_an_odd_total_is_unknown(tree, text):
    put(tree, "proc/meminfo", text)
    assert read_memory(tree).total == 0


@pytest.mark.parametrize(
    ("line", "disabled"), [("THP_enabled:\t0", True), ("THP_enabled:\t1", False), ("", False)]
)
def test_a_process_may_have_huge_pages_switched_off(tree, line, disabled):
    put(tree, "proc/self/status", f"Name:\tx\nVmRSS:\t0 kB\n{line}\n")
    assert read_memory(tree).thp_disabled is disabled


def test_a_host_without_files_has_neutral_values(tree):
    memory = read_memory(tree)
    assert (memory.total, memory.thp, memory.thp_defrag, memory.thp_disabled) == (0, "absent", "", False)
    assert tree.problems == []

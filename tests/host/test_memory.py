"""RAM and the state of transparent huge pages."""

from __future__ import annotations

import pytest
from trees import FORMS, tree_maker

from hfaccel.host.memory import read_memory, thp_problem

THP = "/sys/kernel/mm/transparent_hugepage"


@pytest.fixture(params=FORMS)
def tree_of(request, tmp_path):
    return tree_maker(request.param, tmp_path)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("[always] madvise never\n", "always"),
        ("always [madvise] never\n", "madvise"),
        ("always madvise [never]\n", "never"),
    ],
)
def test_the_mode_is_the_word_in_brackets(tree_of, text, mode):
    tree = tree_of({f"{THP}/enabled": text})
    assert read_memory(tree).thp == mode
    assert tree.problems == []


@pytest.mark.parametrize("text", [None, "", "always madvise never", "[]"])
def test_without_a_selected_mode_there_are_no_huge_pages(tree_of, text):
    tree = tree_of({f"{THP}/enabled": text})
    assert read_memory(tree).thp == "absent"
    assert tree.problems == []


def test_an_unknown_mode_is_a_problem(tree_of):
    tree = tree_of({f"{THP}/enabled": "always [inherit] never"})
    assert read_memory(tree).thp == "absent"
    (problem,) = tree.problems
    assert problem.startswith(f"{THP}/enabled: ")
    assert "'inherit'" in problem


def test_defrag_is_the_word_in_brackets(tree_of):
    tree = tree_of({f"{THP}/defrag": "always defer [defer+madvise] madvise never\n"})
    assert read_memory(tree).thp_defrag == "defer+madvise"


def test_shared_memory_has_a_mode_of_its_own(tree_of):
    tree = tree_of(
        {f"{THP}/enabled": "[always] never", f"{THP}/shmem_enabled": "always within_size [advise] never"}
    )
    memory = read_memory(tree)
    assert (memory.thp, memory.thp_shared) == ("always", "advise")


def test_smaller_huge_pages_have_modes_by_size_in_bytes(tree_of):
    files = {"2048": "[inherit] never", "64": "[always] never", "1024": "always [never]", "16": "no mode"}
    tree = tree_of({f"{THP}/hugepages-{size}kB/enabled": text for size, text in files.items()})
    assert read_memory(tree).thp_sizes == ((65536, "always"), (1 << 20, "never"), (2 << 20, "inherit"))


def test_odd_names_of_sizes_are_no_sizes(tree_of):
    names = ("hugepages-kB", "hugepages-xkB", "hugepages--1kB", "hugepages-64", "hugepages-64kB.old")
    tree = tree_of({f"{THP}/{name}/enabled": "[always]" for name in names})
    assert read_memory(tree).thp_sizes == ()


def test_total_is_in_bytes_and_nothing_else_is_captured(tree_of):
    tree = tree_of({"/proc/meminfo": "MemFree: 1 kB\nMemTotal:       65791232 kB\nSwapTotal: 7 kB\n"})
    assert read_memory(tree).total == 65791232 * 1024
    assert tree.seen["/proc/meminfo"] == "MemTotal:       65791232 kB"


@pytest.mark.parametrize(
    "text", [None, "", "MemTotal:", "MemTotal: x kB", "MemTotal: -1 kB", "MemTotal: " + "9" * 5000]
)
def test_an_odd_total_is_unknown(tree_of, text):
    assert read_memory(tree_of({"/proc/meminfo": text})).total == 0


@pytest.mark.parametrize(
    ("line", "disabled"), [("THP_enabled:\t0", True), ("THP_enabled:\t1", False), ("", False)]
)
def test_a_process_may_have_huge_pages_switched_off(tree_of, line, disabled):
    tree = tree_of({"/proc/self/status": f"Name:\tx\nVmRSS:\t0 kB\n{line}\n"})
    assert read_memory(tree).thp_disabled is disabled
    assert tree.seen["/proc/self/status"] == line


def test_a_host_without_files_has_neutral_values(tree_of):
    tree = tree_of({})
    assert read_memory(tree) == (0, "absent", "", False, "", ())
    assert tree.problems == []


@pytest.mark.parametrize(
    ("general", "own", "problem"),
    [
        ("madvise", None, ""),
        ("always", "inherit", ""),
        ("never", "inherit", "(mode never)"),
        ("never", "madvise", ""),  # since 6.8 the mode of a size wins
        ("always", "never", "(mode never)"),
        (None, None, "(mode absent)"),
    ],
)
def test_the_mode_of_2_mib_pages_decides_unless_it_inherits(tree_of, general, own, problem):
    files = {
        f"{THP}/enabled": general and f"x [{general}] y\n",
        f"{THP}/hugepages-2048kB/enabled": own and f"x [{own}] y\n",
    }
    tree = tree_of({path: text for path, text in files.items() if text})
    assert thp_problem(read_memory(tree)).endswith(problem)
    assert bool(thp_problem(read_memory(tree))) == bool(problem)

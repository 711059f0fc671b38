"""Tree: the one reader of system files. What is missing is None; what is odd is None and a problem line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfaccel.host.tree import MAX_CPUS, Tree, parse_number_list


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def put(tree, absolute, content):
    path = tree.path(absolute)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0-3,8", (0, 1, 2, 3, 8)),
        ("0", (0,)),
        ("", ()),
        (" 0-1 , 4\n", (0, 1, 4)),
        ("8,0-1", (0, 1, 8)),  # ascending, whatever the order in the text
        ("0-3,2-4", (0, 1, 2, 3, 4)),  # each number once
        (f"{MAX_CPUS - 1}", (MAX_CPUS - 1,)),
    ],
)
def test_a_number_list_is_read_in_the_kernels_form(text, numbers):
    assert parse_number_list(text) == numbers


@pytest.mark.parametrize(
    "text", ["a", "0-", "-3", "3-1", "1-2-3", "0--3", "0-3:2", "1.5", "0 1", f"{MAX_CPUS}", f"0-{MAX_CPUS}"]
)
def test_what_is_no_number_list_is_refused(text):
    with pytest.raises(ValueError, match=r"must hold|expected"):
        parse_number_list(text)


@given(st.sets(st.integers(0, 300)))
def test_a_written_number_list_is_read_back(numbers):
    assert parse_number_list(",".join(map(str, numbers))) == tuple(sorted(numbers))


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_range_holds_both_ends(first, length):
    assert parse_number_list(f"{first}-{first + length}") == tuple(range(first, first + length + 1))


@given(st.text(max_size=20))
def test_a_number_list_is_ascending_or_a_value_error(text):
    try:
        numbers = parse_number_list(text)
    except ValueError:
        return
    assert list(numbers) == sorted(set(numbers))


def test_files_are_read_below_the_root(tree):
    put(tree, "/proc/self/status", b"Name:\tx\n\n")
    assert tree.path("/proc/self/status") == tree.root / "proc/self/status"
    assert tree.text("/proc/self/status") == "Name:\tx"
    assert tree.problems == []


def test_only_the_root_folder_is_live(tree):
    assert Tree().is_live
    assert not tree.is_live


@pytest.mark.parametrize("absolute", ["/none", "/none/below", "/file/below"])
def test_a_missing_file_is_none_and_no_problem(tree, absolute):
    put(tree, "/file", b"")
    assert tree.text(absolute) is None
    assert tree.integer(absolute) is None
    assert tree.numbers(absolute) is None
    assert tree.problems == []


def test_an_unreadable_file_is_none_and_a_problem(tree):
    tree.path("/online").mkdir()
    assert tree.text("/online") is None
    (problem,) = tree.problems
    assert problem.startswith("/online: cannot be read (")


def test_bytes_that_are_no_text_are_read_anyway(tree):
    put(tree, "/noise", b"\xff\xfe7")
    assert tree.text("/noise") == "��7"


def test_a_path_with_a_null_byte_is_no_exception(tree):
    # Such a path comes out of a damaged /proc/self/cgroup, which names files to be read.
    assert tree.text("/sys/fs/cgroup/\0/cpu.max") is None


@pytest.mark.parametrize(("content", "number"), [(b"7\n", 7), (b"-1\n", -1), (b"0", 0)])
def test_an_integer_is_read(tree, content, number):
    put(tree, "/id", content)
    assert tree.integer("/id") == number
    assert tree.problems == []


@pytest.mark.parametrize("content", [b"", b"x", b"1.5", b"\xff", b"9" * 5000])
def test_what_is_no_integer_is_a_problem_that_quotes_it_shortly(tree, content):
    put(tree, "/id", content)
    assert tree.integer("/id") is None
    (problem,) = tree.problems
    assert problem.startswith("/id: an integer was expected, but it holds ")
    assert len(problem) < 100


def test_numbers_are_read(tree):
    put(tree, "/online", b"0-1,4\n")
    assert tree.numbers("/online") == (0, 1, 4)
    assert tree.problems == []


@pytest.mark.parametrize("content", [b"x", b"3-1", b"\xff", b"9" * 5000, b"0-99999999999"])
def test_what_is_no_number_list_is_a_problem(tree, content):
    put(tree, "/online", content)
    assert tree.numbers("/online") is None
    (problem,) = tree.problems
    assert problem.startswith("/online: ")


def test_children_are_listed_in_order(tree):
    for name in ("node1", "node0", "has_cpu"):
        put(tree, f"/sys/devices/system/node/{name}/cpulist", b"")
    assert [p.name for p in tree.children("/sys/devices/system/node", "node[0-9]*")] == ["node0", "node1"]


def test_children_of_a_missing_folder_or_of_a_file_are_none(tree):
    put(tree, "/file", b"")
    assert tree.children("/none", "*") == []
    assert tree.children("/file", "*") == []
    assert tree.problems == []

"""Tree: the one reader of system files. What is missing is None; what is odd is None and a problem line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import FORMS, tree_maker, write_folder

from hfaccel.host import format_number_list
from hfaccel.host.tree import MAX_CPUS, MAX_DIGITS, Tree, capture, parse_number_list


@pytest.fixture(params=FORMS)
def tree_of(request, tmp_path):
    return tree_maker(request.param, tmp_path)


# Lists of numbers


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
    assert parse_number_list(format_number_list(tuple(sorted(numbers)))) == tuple(sorted(numbers))


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((4,), "4"), ((0, 1), "0-1"), ((0, 1, 2, 3, 8), "0-3,8"), ((1, 3), "1,3")]
)
def test_a_number_list_is_written_in_the_kernels_form(numbers, text):
    assert format_number_list(numbers) == text


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


# Files


def test_files_are_read_below_the_root(tree_of):
    tree = tree_of({"/proc/self/status": "Name:\tx\n\n"})
    assert tree.text("/proc/self/status") == "Name:\tx"
    assert tree.problems == []


def test_only_the_root_folder_is_live(tree_of):
    assert Tree().is_live
    assert not tree_of({}).is_live


@pytest.mark.parametrize("absolute", ["/none", "/none/below", "/file/below"])
def test_a_missing_file_is_none_and_no_problem(tree_of, absolute):
    tree = tree_of({"/file": ""})
    assert tree.text(absolute) is None
    assert tree.integer(absolute) is None
    assert tree.numbers(absolute) is None
    assert tree.lines(absolute) == []
    assert tree.problems == []
    assert tree.seen == {}


def test_a_folder_in_the_place_of_a_file_is_none_and_a_problem(tmp_path):
    (tmp_path / "online").mkdir()
    tree = Tree(tmp_path)
    assert tree.text("/online") is None
    (problem,) = tree.problems
    assert problem.startswith("/online: cannot be read (")


def test_a_link_to_itself_is_none_and_a_problem(tmp_path):
    (tmp_path / "online").symlink_to("online")
    tree = Tree(tmp_path)
    assert tree.text("/online") is None
    assert tree.names("/online", "*") == []
    assert [problem.partition(" (")[0] for problem in tree.problems] == [
        "/online: cannot be read",
        "/online: cannot be listed",
    ]


def test_bytes_that_are_no_text_are_read_anyway(tree_of):
    assert tree_of({"/noise": b"\xff\xfe7"}).text("/noise") == "��7"


def test_a_path_with_a_null_byte_is_no_exception(tree_of):
    # Such a path comes out of a damaged /proc/self/cgroup, which names files to be read.
    tree = tree_of({"/file": "1"})
    assert tree.text("/sys/fs/cgroup/\0/cpu.max") is None
    assert tree.names("/sys/fs/cgroup/\0", "*") == []
    assert "\0" not in "".join(tree.problems)


@pytest.mark.parametrize(
    ("content", "number"), [("7\n", 7), ("-1\n", -1), ("0", 0), ("9" * MAX_DIGITS, 10**MAX_DIGITS - 1)]
)
def test_an_integer_is_read(tree_of, content, number):
    tree = tree_of({"/id": content})
    assert tree.integer("/id") == number
    assert tree.problems == []


@pytest.mark.parametrize(
    "content", [b"", b"x", b"-", b"--1", b"1.5", b"\xff", b"9" * (MAX_DIGITS + 1), b"9" * 5000]
)
def test_what_is_no_integer_is_a_problem_that_quotes_it_shortly(tree_of, content):
    tree = tree_of({"/id": content})
    assert tree.integer("/id") is None
    (problem,) = tree.problems
    assert problem.startswith("/id: an integer was expected, but it holds ")
    assert len(problem) < 100


def test_numbers_are_read(tree_of):
    tree = tree_of({"/online": "0-1,4\n", "/memory_only": "\n"})
    assert tree.numbers("/online") == (0, 1, 4)
    assert tree.numbers("/memory_only") == ()
    assert tree.problems == []


@pytest.mark.parametrize("content", [b"x", b"3-1", b"\xff", b"9" * 5000, b"0-99999999999"])
def test_what_is_no_number_list_is_a_problem(tree_of, content):
    tree = tree_of({"/online": content})
    assert tree.numbers("/online") is None
    (problem,) = tree.problems
    assert problem.startswith("/online: ")


def test_names_in_a_folder_are_those_that_match_in_order(tree_of):
    files = {f"/sys/node/{name}/cpulist": "" for name in ("node1", "node0", "has_node")}
    tree = tree_of({**files, "/sys/nodes": "", "/sys/node/node2": "", "/sys/node/node1.old": ""})
    assert tree.names("/sys/node", "node*") == ["node0", "node1", "node1.old", "node2"]
    assert tree.names("/sys/node", "n*1") == ["node1"]
    assert tree.names("/sys/node", "*_node") == ["has_node"]


def test_a_missing_folder_and_a_file_hold_no_names(tree_of):
    tree = tree_of({"/file": ""})
    assert tree.names("/none", "*") == []
    assert tree.names("/file", "*") == []
    assert tree.problems == []


def test_a_file_is_there_by_its_name_alone(tree_of):
    tree = tree_of({"/lib/a.so": "", "/lib/b.so/c": ""})
    assert tree.has_file("/lib/a.so")
    assert not tree.has_file("/lib/b.so")
    assert not tree.has_file("/lib")
    assert tree.seen == {"/lib/a.so": ""}


def test_a_probe_asks_this_machine_only_where_it_is_live(tree_of):
    tree = tree_of({"/probes/machine": "riscv\n"})
    assert tree.probe("machine", lambda: 1 / 0) == "riscv"
    assert tree.probe("other", lambda: 1 / 0) == ""
    live = Tree("/")
    assert live.probe("machine", lambda: "this one") == "this one"
    assert live.seen == {"/probes/machine": "this one"}


# What is kept of a file, and captured


def starts(letter):
    return lambda line: line.startswith(letter)


def test_only_lines_that_are_wanted_are_captured(tree_of):
    tree = tree_of({"/status": "a 1\nsecret\na 2\n"})
    assert tree.lines("/status", starts("a")) == ["a 1", "a 2"]
    assert tree.seen == {"/status": "a 1\na 2"}


def test_two_readers_of_one_file_keep_what_either_wants_in_its_order(tree_of):
    tree = tree_of({"/status": "secret\nb 1\nsecret\na 1\n" + "secret\n" * 4 + "b 2\n"})
    assert tree.lines("/status", starts("b")) == ["b 1", "b 2"]
    assert tree.lines("/status", starts("a")) == ["a 1"]
    assert tree.lines("/status", starts("nothing")) == []
    assert tree.seen == {"/status": "b 1\na 1\nb 2"}


def test_a_capture_is_read_as_what_it_was_made_of(tree_of, tmp_path):
    tree = tree_of({"/online": "0-1\n", "/status": "a 1\nsecret\n", "/lib/a.so": "", "/never/read": "1"})
    first = (tree.text("/online"), tree.lines("/status", starts("a")), tree.has_file("/lib/a.so"))
    text = capture(tree)
    assert text == "==> /lib/a.so <==\n\n\n==> /online <==\n0-1\n\n==> /status <==\na 1\n\n"
    (tmp_path / "captured.txt").write_text(text)
    again = Tree(tmp_path / "captured.txt")
    assert (again.text("/online"), again.lines("/status", starts("a")), again.has_file("/lib/a.so")) == first
    assert capture(again) == text


def test_what_stands_before_the_first_file_is_a_comment(tmp_path):
    path = tmp_path / "host.txt"
    path.write_text("A host.\n==> of note <==\n==> /online <==\n0-1\n==> inside <==\n")
    tree = Tree(path)
    assert tree.text("/online") == "0-1\n==> inside <=="
    assert tree.names("", "*") == ["online"]


def test_a_captured_file_may_have_lines_that_end_as_on_windows(tmp_path):
    (tmp_path / "host.txt").write_bytes(b"==> /online <==\r\n0-1\r\n\r\n==> /id <==\r\n7\r\n")
    tree = Tree(tmp_path / "host.txt")
    assert (tree.numbers("/online"), tree.integer("/id")) == ((0, 1), 7)


@pytest.mark.parametrize("content", ["", "no host at all\n", "==> /online <==", "==>  <==\n"])
def test_a_file_that_is_no_captured_host_holds_nothing(tmp_path, content):
    (tmp_path / "host.txt").write_text(content)
    assert not Tree(tmp_path / "host.txt").text("/online")


def test_a_root_may_end_with_a_slash(tmp_path):
    write_folder(tmp_path, {"/online": "0"})
    assert Tree(f"{tmp_path}/").text("/online") == "0"

"""Damaged hosts: every file of every captured host, one at a time, in both forms that a host can have."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from trees import FORMS, HOSTS, NAMES, files_in, tree_maker, write_file, write_folder

from hfaccel.host import read_host
from hfaccel.plan import KNOBS, Goal, make_plan

# Damage to one CPU, node, cache and size of pages stands for that to any other.
LIKE_ANOTHER = re.compile(r"/cpu([2-9]|\d\d+)/|/node([2-9]|\d\d+)/|/index[1-9]/|-(\d\d|1\d+|256|512)kB/")


def sampled(files):
    return [name for name in files if not LIKE_ANOTHER.search(name)]


FEW = {name: files_in(HOSTS / f"{name}.txt") for name in ("cgroup-v1-half-cpu", "hpc-nfs", "zen4-vm")}


def third(files, name, damage):
    """A third of a host's files, by turns: over all hosts every kind of file gets every kind of damage."""
    return sampled(files)[(NAMES.index(name) + [*CONTENTS, *UNREADABLE].index(damage)) % 3 :: 3]


def check_usable(root):
    """What must hold of any host, however odd its files are."""
    facts = read_host(root)
    json.dumps(facts.to_dict())
    online = {entry.cpu for entry in facts.topology.cpus}
    assert online
    assert facts.limits.affinity
    assert set(facts.limits.affinity) <= online
    assert facts.limits.cpu_quota is None or facts.limits.cpu_quota > 0
    assert facts.limits.memory_limit is None or facts.limits.memory_limit > 0
    assert 0 <= facts.limits.steal <= 1
    assert facts.memory.total >= 0
    assert facts.topology.nodes
    assert all(len(node.distances) == len(facts.topology.nodes) for node in facts.topology.nodes)
    plan = make_plan(facts, Goal("launch"))
    assert [choice.knob for choice in plan.choices] == [knob.name for knob in KNOBS]
    assert 1 <= plan["threads"].value <= len(facts.limits.affinity)
    assert set(plan["affinity"].value or ()) <= set(facts.limits.affinity)
    return facts


# What a file holds


def noise(size):
    return random.Random(size).randbytes(size)


CONTENTS = {
    "missing": lambda content: None,
    "emptied": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "noise": lambda content: noise(len(content) + 1),
    "noise appended": lambda content: content.rstrip() + noise(9),
    "null bytes": lambda content: content.rstrip() + b"\0\0",
    "endless digits": lambda content: b"9" * 5000,
    "no number": lambda content: b"-\n",
}


@pytest.mark.parametrize("damage", CONTENTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_no_exception(name, damage, tmp_path):
    files = files_in(HOSTS / f"{name}.txt")
    failures = {}
    for path in third(files, name, damage):
        content = CONTENTS[damage](files[path])
        others = {other: files[other] for other in files if other != path}
        write_file(tmp_path / "host.txt", others if content is None else others | {path: content})
        try:
            check_usable(tmp_path / "host.txt")
        except Exception as error:  # noqa: BLE001 - every file is tried before the test fails
            failures[path] = repr(error)[:200]
    assert failures == {}


@pytest.mark.parametrize("damage", CONTENTS)
@pytest.mark.parametrize("form", FORMS)
def test_a_host_with_nothing_but_damage_is_usable_in_either_form(form, damage, tmp_path):
    make = tree_maker(form, tmp_path)
    for files in FEW.values():
        check_usable(make({path: CONTENTS[damage](content) for path, content in files.items()}).root)


# What is there instead of a file


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_loop(path):
    path.unlink()
    path.symlink_to(path.name)


# Root may read anything, so a file that cannot be read is a folder or a link to itself.
UNREADABLE = {"folder": replace_by_folder, "link to itself": replace_by_loop}


@pytest.mark.parametrize("damage", UNREADABLE)
@pytest.mark.parametrize("name", NAMES)
def test_an_unreadable_file_is_in_the_problems_and_no_exception(name, damage, tmp_path):
    files = files_in(HOSTS / f"{name}.txt")
    write_folder(tmp_path, files)
    untold = []
    for path in third(files, name, damage):
        place = tmp_path / path.lstrip("/")
        UNREADABLE[damage](place)
        problems = check_usable(tmp_path).problems
        # Of a library only the name is looked at.
        if ".so" not in path and not any(line.startswith(f"{path}: ") for line in problems):
            untold.append(path)
        place.rmdir() if place.is_dir() else place.unlink()
        place.write_bytes(files[path])
    assert untold == []


def test_a_host_without_any_file_is_usable(tmp_path):
    facts = check_usable(tmp_path)
    assert facts.limits.affinity == (0,)
    (tmp_path / "empty.txt").touch()
    assert check_usable(tmp_path / "empty.txt") == facts


# Anything anywhere, by chance


PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b":", b",", b"-", b"/", b"\n", b"0::/", b"[", b"]", b" - ", b"0x"]),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@given(st.data())
def test_bytes_put_anywhere_into_a_file_are_no_exception(folder, data):
    files = FEW[data.draw(st.sampled_from(list(FEW)))]
    path = data.draw(st.sampled_from(sampled(files)))
    content = files[path]
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    damaged = content[:start] + b"".join(data.draw(st.lists(PIECES, max_size=4))) + content[end:]
    write_file(folder / "host.txt", files | {path: damaged})
    check_usable(folder / "host.txt")


@given(st.data())
def test_bytes_put_anywhere_into_a_captured_file_are_no_exception(folder, data):
    content = (HOSTS / "hpc-nfs.txt").read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 500)))
    damaged = content[:start] + b"".join(data.draw(st.lists(PIECES, max_size=4))) + content[end:]
    (folder / "host.txt").write_bytes(damaged)
    check_usable(folder / "host.txt")


@pytest.mark.parametrize("form", FORMS)
@given(name=st.binary(max_size=30))
@example(name=b"\0")
@example(name=b"a" * 5000)
@example(name=b"../../..")
def test_any_name_of_a_group_is_no_exception(folder, form, name):
    path = "/proc/self/cgroup"
    own = {path: b"4:cpu,cpuacct:/" + name + b"\n0::/" + name}
    root = folder / form
    if form == "file":
        write_file(root, FEW["zen4-vm"] | own)
    else:
        write_folder(root, own if (root / path[1:]).exists() else FEW["zen4-vm"] | own)
    check_usable(root)

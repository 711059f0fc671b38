"""Whole hosts, as files below tests/hosts: their facts, their plan, and what damage to the files does.

Each folder holds the files that hfaccel reads and expected.json: a part of the facts, one CPU of each
core, the values of the plan of a launch, and the problems.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hfaccel.host import read_host
from hfaccel.plan import KNOBS, Goal, make_plan

HOSTS = Path(__file__).parent.parent / "hosts"
NAMES = sorted(folder.name for folder in HOSTS.iterdir())


LIKE_ANOTHER = re.compile(r"/cpu(\d\d|[2-9])/")  # damage to CPUs 0 and 1 stands for that to any other


def files_of(root):
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "expected.json")
    return sorted(path for path in files if not LIKE_ANOTHER.search(str(path.relative_to(root))))


def as_json(value):
    return json.loads(json.dumps(value, default=vars))


def part(value, pattern):
    """`value` reduced to the keys that `pattern` has."""
    if isinstance(pattern, dict):
        return {key: part(value[key], below) for key, below in pattern.items()}
    return value


@pytest.fixture(params=NAMES)
def host(request):
    return HOSTS / request.param


@pytest.fixture
def expected(host):
    return json.loads((host / "expected.json").read_text())


def test_the_facts_are_as_expected(host, expected):
    for library in expected["facts"]["allocators"]:
        library["path"] = str(host / library["path"])
    facts = as_json(read_host(host).to_dict())
    assert part(facts, expected["facts"]) == expected["facts"]
    assert facts["problems"] == expected["problems"]


def test_the_cores_are_as_expected(host, expected):
    topology = read_host(host).topology
    assert list(topology.one_per_core(tuple(entry.cpu for entry in topology.cpus))) == expected["cores"]


def test_the_plan_is_as_expected(host, expected):
    plan = make_plan(read_host(host), Goal("launch"))
    values = {choice.knob: getattr(choice.value, "kind", choice.value) for choice in plan.choices}
    assert as_json(values) == expected["plan"]
    assert {choice.source for choice in plan.choices} == {"rule"}
    assert all(choice.reason for choice in plan.choices)


def test_reading_twice_gives_the_same_facts(host):
    assert read_host(host) == read_host(str(host))


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
    assert facts.memory.total >= 0
    plan = make_plan(facts, Goal("launch"))
    assert [choice.knob for choice in plan.choices] == [knob.name for knob in KNOBS]
    assert 1 <= plan["threads"].value <= len(facts.limits.affinity)
    assert set(plan["affinity"].value or ()) <= set(facts.limits.affinity)
    return facts


# Damage: every file of every host, one at a time


def noise(size):
    return random.Random(size).randbytes(size)


CONTENTS = {
    "emptied": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "noise": lambda content: noise(len(content) + 1),
    "noise appended": lambda content: content.rstrip() + noise(9),
    "null bytes": lambda content: content.rstrip() + b"\0\0",
    "endless digits": lambda content: b"9" * 5000,
    "no number": lambda content: b"-\n",
}


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_loop(path):
    path.unlink()
    path.symlink_to(path.name)


DAMAGES = {
    **{
        name: lambda path, change=c: path.write_bytes(change(path.read_bytes()))
        for name, c in CONTENTS.items()
    },
    "missing": lambda path: path.unlink(),
    # Root may read anything, so a file that cannot be read is a folder or a link to itself.
    "unreadable": replace_by_folder,
    "link to itself": replace_by_loop,
}


@contextlib.contextmanager
def kept(path):
    """Put the file back afterwards: copying the whole host for each damage would take seconds."""
    content = path.read_bytes()
    try:
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_no_exception(host, damage, tmp_path):
    root = Path(shutil.copytree(host, tmp_path / "host"))
    failures = {}
    for path in files_of(root):
        with kept(path):
            DAMAGES[damage](path)
            try:
                check_usable(root)
            except Exception as error:  # noqa: BLE001 - every file is tried before the test fails
                failures[str(path.relative_to(root))] = repr(error)[:200]
    assert failures == {}


def test_an_unreadable_file_is_in_the_problems(host, tmp_path):
    root = Path(shutil.copytree(host, tmp_path / "host"))
    for path in files_of(root):
        if ".so" in path.name:
            continue  # of these only the name is looked at
        with kept(path):
            replace_by_folder(path)
            absolute = f"/{path.relative_to(root)}"
            assert any(line.startswith(f"{absolute}: ") for line in read_host(root).problems), absolute


def test_a_host_without_any_file_is_usable(tmp_path):
    facts = check_usable(tmp_path)
    assert facts.limits.affinity == (0,)
    assert check_usable(tmp_path / "no folder either").limits == facts.limits


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return Path(shutil.copytree(HOSTS / "cgroup-v1-half-cpu", tmp_path_factory.mktemp("damaged") / "host"))


PIECES = st.one_of(
    st.binary(max_size=12), st.sampled_from([b":", b",", b"-", b"/", b"\n", b"0::/", b"[", b"]"])
)


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_bytes_put_anywhere_into_a_file_are_no_exception(copy, data):
    path = data.draw(st.sampled_from(files_of(copy)))
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    with kept(path):
        path.write_bytes(content[:start] + b"".join(data.draw(st.lists(PIECES, max_size=4))) + content[end:])
        check_usable(copy)


@given(st.binary(max_size=30))
@example(b"\0")
@example(b"a" * 5000)
@example(b"../../..")
@settings(deadline=None, max_examples=50)
def test_any_name_of_a_group_is_no_exception(copy, name):
    path = copy / "proc/self/cgroup"
    with kept(path):
        path.write_bytes(b"4:cpu,cpuacct:/" + name + b"\n0::/" + name)
        check_usable(copy)

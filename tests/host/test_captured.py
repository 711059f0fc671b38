"""Whole hosts, captured in tests/hosts: their facts, their plan, and that a capture is exact.

NAME.txt is a captured host, with a comment that says what it is. NAME.json is what is expected of it, by
thought and not by running the code: a part of the facts, one CPU of each core, the problems, and a part of
the plan of a launch. Lists of numbers are written as the kernel writes them.
"""

from __future__ import annotations

import json

import pytest
from trees import HOSTS, NAMES, files_in, one_per_core, write_folder

from hfaccel.host import capture_host, format_number_list, read_host, read_tree
from hfaccel.host.tree import Tree, capture
from hfaccel.plan import Goal, make_plan


@pytest.fixture(params=NAMES)
def host(request):
    return HOSTS / f"{request.param}.txt"


@pytest.fixture
def expected(host):
    return json.loads(host.with_suffix(".json").read_text())


def like(value, pattern):
    """`value` reduced to the keys that `pattern` has, and written as the pattern is."""
    if isinstance(pattern, dict) and isinstance(value, dict):
        return {key: like(value[key], below) for key, below in pattern.items()}
    if isinstance(value, list) and isinstance(pattern, str):
        return format_number_list(tuple(value))
    if isinstance(value, list) and isinstance(pattern, list) and len(value) == len(pattern):
        return [like(*pair) for pair in zip(value, pattern, strict=True)]
    return value


def as_json(value):
    return json.loads(json.dumps(value))


def test_every_host_has_its_expectations():
    assert sorted(path.stem for path in HOSTS.glob("*.json")) == NAMES
    assert len(NAMES) >= 20


def test_the_facts_are_as_expected(host, expected):
    facts = as_json(read_host(host).to_dict())
    assert like(facts, expected["facts"]) == expected["facts"]
    assert facts["problems"] == expected["problems"]


def test_the_cores_are_as_expected(host, expected):
    topology = read_host(host).topology
    cores = one_per_core(topology, tuple(entry.cpu for entry in topology.cpus))
    assert format_number_list(cores) == expected["cores"]


def test_the_plan_is_as_expected(host, expected):
    plan = make_plan(read_host(host), Goal("launch"))
    values = as_json({choice.knob: choice.to_dict()["value"] for choice in plan.choices})
    assert like(values, expected["plan"]) == expected["plan"]
    assert {choice.source for choice in plan.choices} == {"rule"}
    assert all(choice.reason for choice in plan.choices)


# A capture is exact


def test_a_comment_says_what_the_host_is(host):
    comment, _, _ = host.read_text().partition("\n\n==> /")
    assert 1 <= len(comment.splitlines()) <= 3
    assert comment.endswith(".")


def test_a_folder_with_the_same_files_is_the_same_host(host, tmp_path):
    write_folder(tmp_path, files_in(host))
    assert read_host(tmp_path) == read_host(host)


def test_every_file_of_a_captured_host_is_read_and_no_line_of_it_in_vain(host):
    tree = Tree(host)
    read_tree(tree)
    text = host.read_text()
    assert capture(tree) == text[text.index("==> /") :]


def test_a_capture_of_a_folder_is_the_same_host(host, tmp_path):
    """Of a folder whose files hold more than is needed, none of which gets into the capture."""
    secrets = {"/proc/self/status": b"Name:\tsecret\n", "/proc/meminfo": b"MemFree: 5 kB secret\n"}
    secrets |= {"/proc/self/mountinfo": b"9 1 0:9 / /secret rw - ext4 /dev/secret rw\n"}
    secrets |= {"/proc/self/maps": b"7f00-7f01 r--p 00000000 fd:01 1 /usr/bin/secret\n"}
    secrets |= {"/proc/self/environ": b"TOKEN=secret", "/proc/stat": b"cpu0 1 secret\n"}
    secrets |= {"/proc/self/limits": b"Max file size secret\n", "/usr/lib/libsecret.so": b""}
    files = files_in(host)
    write_folder(tmp_path / "host", files | {name: files.get(name, b"") + secrets[name] for name in secrets})
    tree = Tree(tmp_path / "host")
    facts = read_tree(tree)
    assert facts == read_host(host)
    assert "secret" not in capture(tree)
    (tmp_path / "captured.txt").write_text(capture(tree))
    assert read_host(tmp_path / "captured.txt") == facts


def test_reading_twice_gives_the_same_facts(host):
    assert read_host(host) == read_host(str(host))


def test_the_files_are_what_their_generator_writes(monkeypatch):
    monkeypatch.syspath_prepend(HOSTS)
    import generate

    names = {host.name for host in generate.HOSTS}
    assert names == {name for name in NAMES if not name.startswith("zen4-vm")}  # a real machine
    different = [
        h.name for h in generate.HOSTS if generate.text_of(h) != (HOSTS / f"{h.name}.txt").read_text()
    ]
    assert different == []


# This machine


def test_a_capture_of_this_machine_has_its_facts(tmp_path):
    live = Tree("/")
    facts = read_tree(live)
    (tmp_path / "captured.txt").write_text(capture(live))
    # What this machine could not read is not in the capture, so the problems may be fewer.
    assert read_host(tmp_path / "captured.txt")._replace(problems=facts.problems) == facts


def test_a_capture_of_this_machine_names_nothing_of_its_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "a secret")
    (tmp_path / "captured.txt").write_text(capture_host())
    files = files_in(tmp_path / "captured.txt")
    assert "/proc/cpuinfo" in files
    assert b"a secret" not in b"".join(files.values())
    fields = {
        line.split(b":")[0] for name in files if name.endswith("/status") for line in files[name].splitlines()
    }
    assert fields <= {b"THP_enabled", b"Cpus_allowed_list", b"Mems_allowed_list"}

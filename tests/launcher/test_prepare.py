"""How hfaccel-run decides what to start: the parts that start nothing."""

from __future__ import annotations

import os

import pytest
from conftest import replace

from hfaccel import launcher
from hfaccel.apply.environ import SITE
from hfaccel.commands import run as command
from hfaccel.errors import ScriptError, UsageError
from hfaccel.host import Library, read_host
from hfaccel.launcher import Launch, become, check_program, plan_with_working_preload, prepare
from hfaccel.plan import Choice, Goal, Plan

FIRST, SECOND = Library("mimalloc", "/lib/first.so"), Library("jemalloc", "/lib/second.so")
FACTS = replace(read_host(), allocators=(FIRST, SECOND), libc="glibc")


@pytest.fixture
def trials(monkeypatch):
    """Preload trials without a loader: `answers` maps a path to its problem; `tried` lists the paths."""
    answers, tried = {}, []

    def trial(path):
        tried.append(path)
        return answers.get(path, "")

    monkeypatch.setattr(launcher, "preload_trial", trial)
    return answers, tried


@pytest.mark.parametrize("program", [["-m", "module"], ["-c", ""], ["-m", "x", "-y"], ["-"], ["."]])
def test_programs_that_python_can_start(program):
    check_program(program)


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ([], "a script or -m module must be given"),
        (["-m"], "-m must be followed by its argument"),
        (["-c"], "-c must be followed by its argument"),
        (["-x", "a.py"], "but got '-x'"),
        (["--", "a.py"], "but got '--'"),
    ],
)
def test_programs_that_break_a_rule(program, text):
    with pytest.raises(UsageError, match=text):
        check_program(program)


def test_a_missing_script_is_named_with_the_reason():
    with pytest.raises(ScriptError, match=r"must exist.*'none\.py'.*No such file"):
        check_program(["none.py"])


def test_an_unreadable_script_is_refused(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.touch()
    check_program([str(script)])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ScriptError, match="must be readable"):
        check_program([str(script)])


def test_an_allocator_that_works_is_chosen_without_a_note(trials):
    plan, notes = plan_with_working_preload(FACTS, Goal())
    assert plan["allocator"].value == FIRST and notes == ()
    assert trials[1] == [FIRST.path]


def test_an_allocator_that_fails_gives_way_to_the_next(trials):
    trials[0][FIRST.path] = "crashes"
    plan, notes = plan_with_working_preload(FACTS, Goal())
    assert plan["allocator"].value == SECOND
    assert notes == ("/lib/first.so crashes",)


def test_glibc_is_what_remains_when_every_allocator_fails(trials):
    trials[0].update({FIRST.path: "crashes", SECOND.path: "is refused"})
    plan, notes = plan_with_working_preload(FACTS, Goal())
    assert plan["allocator"].value == "glibc"
    assert notes == ("/lib/first.so crashes", "/lib/second.so is refused")
    assert trials[1] == [FIRST.path, SECOND.path]


def test_on_another_libc_nothing_remains(trials):
    trials[0].update({FIRST.path: "crashes", SECOND.path: "crashes"})
    plan, _ = plan_with_working_preload(replace(FACTS, libc="musl"), Goal())
    assert plan["allocator"].value is None


@pytest.mark.parametrize("wanted", ["mimalloc", "jemalloc"])
def test_an_allocator_asked_for_is_not_replaced_by_another(trials, wanted):
    trials[0].update({FIRST.path: "crashes", SECOND.path: "crashes"})
    with pytest.raises(UsageError, match=r"but /lib/\w+\.so crashes; use --memory-allocator auto"):
        plan_with_working_preload(FACTS, Goal("launch", {"allocator": wanted}))
    assert len(trials[1]) == 1


@pytest.mark.parametrize("wanted", ["glibc", "default"])
def test_nothing_is_tried_where_nothing_is_preloaded(trials, wanted):
    plan_with_working_preload(FACTS, Goal("launch", {"allocator": wanted}))
    plan_with_working_preload(FACTS, Goal("launch", {}, {"LD_PRELOAD": "the-users.so"}))
    assert trials[1] == []


def test_prepare_changes_nothing_and_says_what_it_would_do(trials):
    before, user = dict(os.environ), {"PATH": "/bin", "PYTHONPATH": "/user"}
    launch = prepare(["-c", "pass", "a b"], {"threads": 1, "allocator": "default"}, user)
    assert dict(os.environ) == before and user == {"PATH": "/bin", "PYTHONPATH": "/user"}
    assert launch.command[1:] == ("-c", "pass", "a b")
    assert launch.changes(user) == {"OMP_NUM_THREADS": "1"}
    assert launch.environment["PYTHONPATH"] == f"{SITE}:/user"
    described = launch.to_dict(user)
    assert described["environment"] == {"OMP_NUM_THREADS": "1"} and described["notes"] == []


def bound(cpus):
    return Launch(("/bin/python", "-c", "pass"), {"A": "1"}, Plan((Choice("affinity", cpus, "a reason"),)))


@pytest.fixture
def calls(monkeypatch):
    seen = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda *given: seen.append(("affinity", *given)))
    monkeypatch.setattr(os, "execve", lambda *given: seen.append(("execve", *given)))
    return seen


def test_become_binds_and_then_replaces_the_process(calls):
    become(bound((0, 2)))
    program = ("execve", "/bin/python", ("/bin/python", "-c", "pass"), {"A": "1"})
    assert calls == [("affinity", 0, (0, 2)), program]


def test_become_leaves_the_mask_alone_where_none_was_chosen(calls):
    become(bound(None))
    assert [name for name, *_ in calls] == ["execve"]


def test_a_mask_that_the_system_refuses_does_not_stop_the_program(calls, monkeypatch):
    """The rule's own choice is an improvement only; containers may forbid the call (EPERM)."""

    def refuse(pid, cpus):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    become(bound((0,)))
    assert [name for name, *_ in calls] == ["execve"]


@pytest.mark.parametrize(
    ("arguments", "head", "program"),
    [
        ([], [], []),
        (["a.py", "--json"], [], ["a.py", "--json"]),
        (["--json", "a.py", "--json"], ["--json"], ["a.py", "--json"]),
        (["--threads", "2", "a.py"], ["--threads", "2"], ["a.py"]),
        (["--threads=2", "a.py"], ["--threads=2"], ["a.py"]),
        (["--cores-list", "-1", "a.py"], ["--cores-list", "-1"], ["a.py"]),
        (["--threads"], ["--threads"], []),
        (["--threads", "--", "a.py"], ["--threads", "--"], ["a.py"]),
        (["--memory_allocator", "/a_b.so", "a_b.py"], ["--memory-allocator", "/a_b.so"], ["a_b.py"]),
        (["--memory_allocator=/a_b.so", "x"], ["--memory-allocator=/a_b.so"], ["x"]),
        (["--dry_run", "--", "-x.py"], ["--dry-run"], ["-x.py"]),
        (["--", "--json"], [], ["--json"]),
        (["--json", "--", "a.py", "--", "b"], ["--json"], ["a.py", "--", "b"]),
        (["-m", "module", "--threads", "2"], [], ["-m", "module", "--threads", "2"]),
        (["-c", "code"], [], ["-c", "code"]),
        (["-", "--json"], [], ["-", "--json"]),
        (["", "--json"], [], ["", "--json"]),
        (["-h"], ["-h"], []),
    ],
)
def test_own_options_end_where_the_program_begins(arguments, head, program):
    given = list(arguments)
    assert command.split(arguments, command._parser()) == (head, program)
    assert arguments == given


def test_the_verb_reports_what_did_not_work(trials, monkeypatch, capsys):
    """A note reaches the user on standard error; the program is started all the same."""
    trials[0][FIRST.path] = "crashes"
    monkeypatch.setattr(launcher, "read_host", lambda: FACTS)
    for name in ("LD_PRELOAD", "MALLOC_CONF", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    started = []
    monkeypatch.setattr(command, "become", started.append)
    command.run(["--no-bind", "-c", "pass"])
    assert started[0].plan["allocator"].value == SECOND
    captured = capsys.readouterr()
    assert captured.err == "hfaccel-run: /lib/first.so crashes\n" and captured.out == ""

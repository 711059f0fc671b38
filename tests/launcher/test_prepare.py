"""How hfaccel-run decides what to start: the parts that start nothing."""

from __future__ import annotations

import os
import sys

import pytest
from conftest import replace

from hfaccel.apply.environ import SITE
from hfaccel.commands import run as command
from hfaccel.commands import run_options
from hfaccel.errors import ScriptError, UsageError
from hfaccel.host import Library, read_host
from hfaccel.launcher import Launch, Settings, become, prepare
from hfaccel.launcher.prepare import executable_command, plan_with_working_preload, python_command
from hfaccel.plan import Choice, Goal, MemoryPolicy, Plan

# The package has a function of that name.
preparing = sys.modules["hfaccel.launcher.prepare"]
FIRST, SECOND = Library("mimalloc", "/lib/first.so"), Library("jemalloc", "/lib/second.so")
FACTS = replace(read_host(), allocators=(FIRST, SECOND), libc="glibc")


@pytest.fixture
def trials(monkeypatch):
    """Preload trials without a loader: `answers` maps a path to its problem; `tried` lists the paths."""
    answers, tried = {}, []

    def trial(path):
        tried.append(path)
        return answers.get(path, "")

    monkeypatch.setattr(preparing, "preload_trial", trial)
    return answers, tried


@pytest.mark.parametrize("program", [["-m", "module"], ["-c", ""], ["-m", "x", "-y"], ["-"], ["."]])
def test_programs_that_python_can_start(program):
    assert python_command(program) == (sys.executable, *program)


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
        python_command(program)


def test_a_missing_script_is_named_with_the_reason():
    with pytest.raises(ScriptError, match=r"must exist.*'none\.py'.*No such file"):
        python_command(["none.py"])


def test_an_unreadable_script_is_refused(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.touch()
    python_command([str(script)])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ScriptError, match="must be readable"):
        python_command([str(script)])


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
    settings = Settings({"threads": 1, "allocator": "default"})
    (launch,) = prepare(["-c", "pass", "a b"], settings, user)
    assert dict(os.environ) == before and user == {"PATH": "/bin", "PYTHONPATH": "/user"}
    assert launch.command[1:] == ("-c", "pass", "a b")
    assert launch.changes(user) == {"OMP_NUM_THREADS": "1"}
    assert launch.environment["PYTHONPATH"] == f"{SITE}:/user"
    described = launch.to_dict(user)
    assert described["environment"] == {"OMP_NUM_THREADS": "1"} and described["notes"] == []


def test_an_executable_is_found_on_the_path(tmp_path, monkeypatch):
    program = tmp_path / "a program"
    program.write_text("#!/bin/sh")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert executable_command(["a program", "-x"]) == (str(program), "-x")
    assert executable_command([str(program)]) == (str(program),)
    program.chmod(0o644)
    with pytest.raises(ScriptError, match="executable and on the PATH, but 'a program' is not"):
        executable_command(["a program"])


def test_no_executable_is_refused():
    with pytest.raises(UsageError, match="a program must be given"):
        executable_command([])


def bound(cpus=None, policy=None, source="rule"):
    values = {"affinity": cpus, "memory_policy": policy, "hub_cache": None}
    plan = Plan(tuple(Choice(knob, value, "a reason", source) for knob, value in values.items()))
    return Launch(("/bin/python", "-c", "pass"), {"A": "1"}, plan, None, (0, 1, 2, 3))


@pytest.fixture
def calls(monkeypatch):
    seen = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda *given: seen.append(("affinity", *given)))
    monkeypatch.setattr(os, "execve", lambda *given: seen.append(("execve", *given)))
    return seen


PROGRAM = ("execve", "/bin/python", ("/bin/python", "-c", "pass"))
STARTED = {"A": "1", "HFACCEL_RUN": str(os.getpid())}


def test_become_binds_and_then_replaces_the_process(calls):
    become(bound((0, 2)))
    children = {"HFACCEL_CHILDREN_AFFINITY": "0,1,2,3"}
    assert calls == [("affinity", 0, (0, 2)), (*PROGRAM, {**STARTED, **children})]


@pytest.mark.parametrize("source", ["user", "profile"])
def test_children_inherit_a_mask_that_was_asked_for(calls, source):
    become(bound((0, 2), source=source))
    assert calls == [("affinity", 0, (0, 2)), (*PROGRAM, STARTED)]


def test_become_leaves_the_mask_alone_where_none_was_chosen(calls):
    become(bound())
    assert calls == [(*PROGRAM, STARTED)]


def test_a_mask_that_the_system_refuses_does_not_stop_the_program(calls, monkeypatch, capsys):
    """The rule's own choice is an improvement only; containers may forbid the call (EPERM)."""

    def refuse(pid, cpus):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    become(bound((0, 2)))
    ((name, *_),) = calls
    assert name == "execve"
    assert capsys.readouterr().err == "hfaccel-run: binding to CPUs 0,2 failed (Operation not permitted)\n"


def test_a_memory_policy_that_the_system_refuses_does_not_stop_the_program(calls, monkeypatch, capsys):
    class Refusing:
        def set_memory_policy(self, mode, nodes):
            raise OSError(38, "set_mempolicy: Function not implemented")

    monkeypatch.setattr("hfaccel.native.arena", Refusing())
    become(bound(policy=MemoryPolicy("preferred", (0,))))
    assert calls == [(*PROGRAM, STARTED)]
    expected = "hfaccel-run: memory policy preferred:0 is not set (Function not implemented)\n"
    assert capsys.readouterr().err == expected


def test_without_the_native_part_a_memory_policy_is_a_note(calls, monkeypatch, capsys):
    monkeypatch.setattr("hfaccel.native.arena", None)
    monkeypatch.setattr("hfaccel.native.MISSING", "it is missing")
    become(bound(policy=MemoryPolicy("preferred", (0,))))
    assert calls == [(*PROGRAM, STARTED)]
    assert capsys.readouterr().err == "hfaccel-run: memory policy preferred:0 is not set: it is missing\n"


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
    assert run_options.split(arguments, run_options._parser()) == (head, program)
    assert arguments == given


def test_the_verb_reports_what_did_not_work(trials, monkeypatch, capsys):
    """A note reaches the user on standard error; the program is started all the same."""
    trials[0][FIRST.path] = "crashes"
    monkeypatch.setattr(preparing, "read_host", lambda: FACTS)
    for name in ("LD_PRELOAD", "MALLOC_CONF", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    started = []
    monkeypatch.setattr(command, "become", started.append)
    monkeypatch.setattr("hfaccel.launcher.instances.run_instances", lambda launches, path: 0)
    command.run(["--no-bind", "-c", "pass"])
    assert started[0].plan["allocator"].value == SECOND
    captured = capsys.readouterr()
    assert captured.err == "hfaccel-run: /lib/first.so crashes\n" and captured.out == ""

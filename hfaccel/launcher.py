"""hfaccel-run: choose an environment for a Python program and become it.

Nothing runs in between: the process replaces itself by `python program arguments` (the PID stays), so
sys.argv, __main__, __file__, exit codes, signals and tracebacks are plain Python's own. What the
environment holds for this one process is taken out of it again before the program starts
(`hfaccel/_site`), so its children see the user's environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hfaccel.apply.environ import launch_environment
from hfaccel.apply.preload import preload_trial
from hfaccel.errors import ScriptError, UsageError
from hfaccel.host import HostFacts, Library, read_host
from hfaccel.plan import Choice, Goal, Plan, make_plan


class Launch(NamedTuple):
    """A program that is ready to be started, and why it is started so."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    plan: Plan
    notes: tuple[str, ...] = ()  # what was tried and did not work

    def changes(self, before: Mapping[str, str]) -> dict[str, str]:
        """The variables that differ from `before`, without hfaccel's own bookkeeping."""
        return {
            name: value
            for name, value in sorted(self.environment.items())
            if before.get(name) != value and not name.startswith("HFACCEL_") and name != "PYTHONPATH"
        }

    def to_dict(self, before: Mapping[str, str]) -> dict[str, Any]:
        return {
            "command": list(self.command),
            "environment": self.changes(before),
            "plan": self.plan.to_dict(),
            "notes": list(self.notes),
        }


def prepare(program: Sequence[str], overrides: Mapping[str, Any], environment: Mapping[str, str]) -> Launch:
    """Plan how to start `program`: a script or `-m module` or `-c code`, then its arguments.

    Changes nothing. Raises UsageError for a setting that breaks a rule, ScriptError for a program that
    Python could not start either.
    """
    check_program(program)
    facts = read_host()
    plan, notes = plan_with_working_preload(facts, Goal("launch", overrides, environment))
    command = (sys.executable, *program)
    return Launch(command, launch_environment(plan, environment), plan, notes)


def plan_with_working_preload(facts: HostFacts, goal: Goal) -> tuple[Plan, tuple[str, ...]]:
    """The plan whose allocator can really be preloaded here; one that fails is left out, with a note."""
    notes: list[str] = []
    while True:
        plan = make_plan(facts, goal)
        choice = plan["allocator"]
        problem = preload_trial(choice.value.path) if isinstance(choice.value, Library) else ""
        if not problem:
            return plan, tuple(notes)
        _refuse_if_asked_for(choice, problem)
        notes.append(f"{choice.value.path} {problem}")
        others = tuple(library for library in facts.allocators if library != choice.value)
        facts = facts._replace(allocators=others)


def _refuse_if_asked_for(choice: Choice, problem: str) -> None:
    if choice.source == "user":
        raise UsageError(
            f"a library to preload must be loadable, but {choice.value.path} {problem}; "
            "use --memory-allocator auto"
        )


def check_program(program: Sequence[str]) -> None:
    """Raise what is known to fail before anything is started."""
    if not program:
        raise UsageError("a script or -m module must be given, but got neither; see hfaccel-run --help")
    name = program[0]
    if name in ("-m", "-c"):
        if len(program) < 2:
            raise UsageError(f"{name} must be followed by its argument, but got nothing")
        return
    if name == "-":
        return
    if name.startswith("-"):
        raise UsageError(
            f"a script or -m module must come after the options, but got {name!r}; "
            f"a script of that name is ./{name}, and options of Python are set by PYTHON* variables"
        )
    _check_script(name)


def _check_script(name: str) -> None:
    try:
        Path(name).stat()
        readable = os.access(name, os.R_OK)
    except PermissionError:
        readable = False
    except OSError as error:
        place = f"no {name!r} in {_here()} ({error.strerror})"
        raise ScriptError(f"a script must exist, but there is {place}; check the path") from None
    if not readable:
        raise ScriptError(f"a script must be readable, but {name!r} is not; check its permissions")


def _here() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return "a folder that was removed"


def become(launch: Launch) -> None:
    """Replace this process by the program. Returns only by raising ScriptError."""
    cpus = launch.plan["affinity"].value
    if cpus is not None:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:  # some containers forbid it; the program runs all the same
            print(f"hfaccel-run: binding to CPUs {list(cpus)} failed ({error.strerror})", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(launch.command[0], launch.command, dict(launch.environment))
    except OSError as error:
        raise ScriptError(
            f"Python must be startable, but {launch.command[0]} is not ({error.strerror})"
        ) from None

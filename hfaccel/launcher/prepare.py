"""What will be started, and how: facts, slots and plans. Changes nothing."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from hfaccel.apply.environ import SAVED, launch_environment
from hfaccel.apply.preload import preload_trial
from hfaccel.errors import ScriptError, UsageError
from hfaccel.host import HostFacts, Library, read_host
from hfaccel.plan import Choice, Goal, Plan, Request, Slot, advice, make_plan, place, rank_slot
from hfaccel.plan.make import within
from hfaccel.plan.placement import INSTANCE, INSTANCES
from hfaccel.plan.profile import Profile, check_host

STARTED = "HFACCEL_RUN"  # PID of the process that hfaccel-run became
AUTO = "HFACCEL_AUTO"


class Settings(NamedTuple):
    """What the user asks of hfaccel-run."""

    overrides: Mapping[str, object] = MappingProxyType({})  # knob -> value
    profile: Profile = Profile()
    request: Request = Request()
    instance: int | None = None  # start only this instance
    python: bool = True  # False: the program is an executable
    optimize: bool = False  # optimize the models that an unchanged program loads


class Launch(NamedTuple):
    """A program that is ready to be started, with the plan for its process."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    plan: Plan
    slot: Slot | None = None
    original_mask: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()  # what was tried and did not work
    advice: str = ""  # which number of instances serves which goal here

    def changes(self, before: Mapping[str, str]) -> dict[str, str]:
        """The variables that differ from `before`, without hfaccel's own bookkeeping."""
        return {
            name: value
            for name, value in sorted(self.environment.items())
            if before.get(name) != value and not _is_own(name)
        }

    def to_dict(self, before: Mapping[str, str]) -> dict[str, object]:
        return {
            "command": list(self.command),
            "environment": self.changes(before),
            "plan": self.plan.to_dict(),
            "notes": list(self.notes),
            "advice": self.advice,
        }


def _is_own(name: str) -> bool:
    """Whether a variable is hfaccel's bookkeeping, for which a shell has no use."""
    return name in ("PYTHONPATH", STARTED) or name.startswith(SAVED)


def prepare(program: Sequence[str], settings: Settings, environment: Mapping[str, str]) -> tuple[Launch, ...]:
    """Plan how to start `program`: a script, `-m module` or `-c code`, then its arguments.

    Returns a Launch for each instance and changes nothing. Raises UsageError for a setting that breaks a
    rule, ScriptError for a program that could not be started without hfaccel either.
    """
    check_start(environment, settings)
    command = python_command(program) if settings.python else executable_command(program)
    facts = read_host()
    settings = _with_profile(facts, settings, environment)
    slots = _slots(facts, settings, environment)
    return tuple(_launch(command, facts, settings, environment, slot) for slot in slots)


def _with_profile(facts: HostFacts, settings: Settings, environment: Mapping[str, str]) -> Settings:
    """The settings with the instances of the profile, unless the user asks for some places."""
    rank, profile = rank_slot(facts, environment), settings.profile
    check_host(profile, facts if rank is None else within(facts, rank.cpus))
    request = profile.request() if settings.request == Request() else settings.request
    if rank is not None and profile.instances and request.instances != 1:
        raise UsageError(
            "a profile with instances must be used by one process on this machine, but "
            f"{profile.path!r} has {request.instances} and this is rank {rank.instance} of {rank.instances}; "
            "start the program without torchrun or mpirun"
        )
    return settings._replace(request=request)


def _slots(facts: HostFacts, settings: Settings, environment: Mapping[str, str]) -> tuple[Slot | None, ...]:
    request = settings.request
    several = request.instances or request.cores_per_instance or request.mode
    if several and environment.get(INSTANCES, "1") != "1":
        raise UsageError(
            f"an instance must not start instances again, but {INSTANCES}={environment[INSTANCES]} is set"
        )
    slots = place(facts, request)
    if settings.instance is not None:
        if settings.instance >= len(slots):
            raise UsageError(
                f"`instance-idx < instances` must hold, but got {settings.instance} of {len(slots) or 1}"
            )
        return slots[settings.instance : settings.instance + 1]
    return slots or (rank_slot(facts, environment),)


def _launch(
    command: tuple[str, ...],
    facts: HostFacts,
    settings: Settings,
    environment: Mapping[str, str],
    slot: Slot | None,
) -> Launch:
    goal = Goal("launch", settings.overrides, environment, settings.profile.knobs, slot)
    plan, notes = plan_with_working_preload(facts, goal)
    variables = launch_environment(plan, environment)
    if slot is not None:
        variables |= {INSTANCE: str(slot.instance), INSTANCES: str(slot.instances)}
    if settings.optimize:
        variables[AUTO] = "1"
    told = advice(facts, settings.request)
    return Launch(command, variables, plan, slot, facts.limits.affinity, notes, told)


def plan_with_working_preload(facts: HostFacts, goal: Goal) -> tuple[Plan, tuple[str, ...]]:
    """A plan whose libraries can be preloaded here, with a note for each library that cannot."""
    notes: list[str] = []
    while True:
        plan = make_plan(facts, goal)
        problems = {choice: _preload_problem(choice) for choice in plan.choices}
        failing = next((choice for choice, problem in problems.items() if problem), None)
        if failing is None:
            return plan, tuple(notes)
        _refuse_if_asked_for(failing, problems[failing])
        notes.append(f"{failing.value.path} {problems[failing]}")
        facts = facts._replace(
            allocators=tuple(library for library in facts.allocators if library != failing.value),
            openmp=tuple(library for library in facts.openmp if library != failing.value),
        )


def _preload_problem(choice: Choice) -> str:
    return preload_trial(choice.value.path) if isinstance(choice.value, Library) else ""


def _refuse_if_asked_for(choice: Choice, problem: str) -> None:
    if choice.source != "rule":
        option = "--memory-allocator" if choice.knob == "allocator" else "--omp-runtime"
        raise UsageError(
            f"a library to preload must be loadable, but {choice.value.path} {problem}; use {option} auto"
        )


# Failures that can be foreseen


def check_start(environment: Mapping[str, str], settings: Settings) -> None:
    if not Path("/proc/self/status").exists():
        raise ScriptError("/proc must be mounted, but it is not: no limit of this container can be read")
    if environment.get(STARTED) == str(os.getpid()):
        raise ScriptError(
            "hfaccel-run must not start itself again, but hfaccel-run has started this process already "
            f"({STARTED}={os.getpid()}); unset {STARTED} where that is intended"
        )
    if settings.python and _gains_privileges(sys.executable):
        raise ScriptError(
            f"Python must not be set-uid or have capabilities, but {sys.executable} is: the loader ignores "
            "preloaded libraries there; use another Python, or --memory-allocator default with plain python"
        )


def _gains_privileges(path: str) -> bool:
    try:
        if Path(path).stat().st_mode & (stat.S_ISUID | stat.S_ISGID):
            return True
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False  # no such attribute, or a file system without any


def executable_command(program: Sequence[str]) -> tuple[str, ...]:
    if not program:
        raise UsageError("a program must be given, but got none; see hfaccel-run --help")
    import shutil  # with its compressors it takes 3 ms

    found = shutil.which(program[0])
    if found is None:
        raise ScriptError(f"a program must be executable and on the PATH, but {program[0]!r} is not")
    return (found, *program[1:])


def python_command(program: Sequence[str]) -> tuple[str, ...]:
    if not program:
        raise UsageError("a script or -m module must be given, but got neither; see hfaccel-run --help")
    name = program[0]
    if name in ("-m", "-c"):
        if len(program) < 2:
            raise UsageError(f"{name} must be followed by its argument, but got nothing")
    elif name.startswith("-") and name != "-":
        raise UsageError(
            f"a script or -m module must come after the options, but got {name!r}; "
            f"a script of that name is ./{name}, and options of Python are set by PYTHON* variables"
        )
    elif name != "-":
        _check_script(name)
    return (sys.executable, *program)


def _check_script(name: str) -> None:
    try:
        Path(name).stat()
        readable = os.access(name, os.R_OK)
    except PermissionError:
        readable = False
    except OSError as error:
        import shutil  # with its compressors it takes 3 ms

        place = f"no {name!r} in {_here()} ({error.strerror})"
        remedy = "check the path"
        if shutil.which(name):  # `hfaccel-run python script.py`, as with numactl and taskset
            remedy = f"leave python out, or start the program {name!r} with --no-python"
        raise ScriptError(f"a script must exist, but there is {place}; {remedy}") from None
    if not readable:
        raise ScriptError(f"a script must be readable, but {name!r} is not; check its permissions")


def _here() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return "a folder that was removed"

"""Starting one program: its place, its folders, and the exec."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from hfaccel import native
from hfaccel.errors import ScriptError
from hfaccel.host import format_number_list
from hfaccel.launcher.prepare import STARTED, Launch
from hfaccel.plan import MemoryPolicy

CHILDREN = "HFACCEL_CHILDREN_AFFINITY"  # the affinity mask of the program's children; read in hfaccel/_site


def become(launch: Launch) -> None:
    """Replace this process by the program. Returns only by raising ScriptError."""
    for note in bind(launch):
        say(note)
    environment = {**start_environment(launch), STARTED: str(os.getpid())}
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where they are closed
        stream.flush()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would keep that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(launch.command[0], launch.command, environment)
    except OSError as error:
        raise ScriptError(
            f"a program must be startable, but {launch.command[0]} is not ({error.strerror})"
        ) from None


def say(line: str) -> None:
    if sys.stderr is not None:
        print(f"hfaccel-run: {line}", file=sys.stderr, flush=True)


def bind(launch: Launch) -> list[str]:
    """Bind this process as planned. Returns a line for each refusal; the program runs nevertheless."""
    notes = []
    cpus = launch.plan["affinity"].value
    if cpus is not None:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:
            notes.append(f"binding to CPUs {format_number_list(cpus)} failed ({error.strerror})")
    policy = launch.plan["memory_policy"].value
    if isinstance(policy, MemoryPolicy):
        notes += set_memory_policy(policy)
    return notes


def set_memory_policy(policy: MemoryPolicy) -> list[str]:
    if native.arena is None:
        return [f"memory policy {policy} is not set: {native.MISSING}"]
    try:
        native.arena.set_memory_policy(policy.mode, policy.nodes)
    except OSError as error:
        return [f"memory policy {policy} is not set ({os.strerror(error.errno or 0)})"]
    return []


def start_environment(launch: Launch) -> dict[str, str]:
    """The program's environment, without what the system refused."""
    environment = dict(launch.environment)
    choice = launch.plan["affinity"]
    if choice.value is not None and choice.source == "rule" and launch.slot is None:
        # The rules chose this mask, not the user, so it is for this program and not for its children.
        environment[CHILDREN] = ",".join(map(str, launch.original_mask))
    cache = launch.plan["hub_cache"]
    if cache.value is not None and cache.source == "rule":
        problem = make_private_folder(cache.value)
        if problem:
            say(f"models stay where they are: {cache.value} {problem}")
            environment.pop("HF_HUB_CACHE", None)
    return environment


def make_private_folder(path: str) -> str:
    """Make a folder to which nobody else can write. Returns why that failed; "" where it did not.

    Everybody can write to the parent, so somebody else may have made the folder, or a link of that name.
    """
    try:
        Path(path).mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(path)
    except OSError as error:
        return f"cannot be made ({error.strerror})"
    is_folder = (status.st_mode & 0o170000) == 0o040000
    if not is_folder or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        return "belongs to somebody else"
    return ""

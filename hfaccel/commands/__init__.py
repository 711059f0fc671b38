"""The command line: one file per verb. A verb is a module whose `run(arguments)` returns the exit code.

Another package adds a verb by an entry point of the group `hfaccel.commands` that loads such a module.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from hfaccel.errors import HfaccelError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "hfaccel.commands"  # of entry points
VERBS = {
    "info": "what this machine and container allow, and the plan for them",
    "doctor": "check the environment; exit code 0, 1 (warnings) or 2 (errors)",
    "bench": "measure a model or a script of yours on this machine: hfaccel bench MODEL --quick",
    "tune": "find the best settings for a model or a script: hfaccel tune MODEL",
    "run": "start a Python program in the best environment (the same as hfaccel-run)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """`hfaccel VERB ...`. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        return guarded(lambda: _usage(0 if given else 2))
    if given[0] == "--version":
        return guarded(print_version)
    return guarded(lambda: _run_verb(given[0], given[1:]))


def _usage(code: int) -> int:
    print("usage: hfaccel VERB [options]\n")
    others = {entry.name: f"of the package {entry.value.partition('.')[0]}" for entry in _others()}
    print("\n".join(f"  {verb:8} {meaning}" for verb, meaning in {**others, **VERBS}.items()))
    print("\nhfaccel VERB --help tells more about one of them.")
    return code


def print_version() -> int:
    from importlib.metadata import version

    print(f"hfaccel {version('hfaccel')}")
    return 0


def _run_verb(verb: str, arguments: list[str]) -> int:
    if verb in VERBS:
        module = importlib.import_module(f"hfaccel.commands.{verb}")
    else:
        others = {entry.name: entry for entry in _others()}
        if verb not in others:
            raise UsageError(f"the verb must be one of {', '.join([*VERBS, *others])}, but got {verb!r}")
        module = others[verb].load()
    code: int = module.run(arguments)
    return code


def _others() -> Iterable[EntryPoint]:
    """Verbs of other packages."""
    from importlib.metadata import entry_points

    return entry_points(group=GROUP)


def guarded(command: Callable[[], int]) -> int:
    """Run a command. An expected failure prints one line on standard error and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # paths need not be text
    code = 0  # also where the reader has gone (`hfaccel info | head`)
    try:
        code = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except HfaccelError as error:
        print(f"hfaccel: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Python flushes standard output once more at exit, so standard output gets another target.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code

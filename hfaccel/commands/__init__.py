"""The command line: one file per verb. A verb is a module with `add_arguments` and `run`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from hfaccel.errors import HfaccelError, UsageError

VERBS = {
    "info": "what this machine and container allow, and the plan for them",
    "doctor": "check the environment; exit code 0, 1 (warnings) or 2 (errors)",
    "run": "start a Python program in the best environment (the same as hfaccel-run)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """`hfaccel VERB ...`. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print("usage: hfaccel VERB [options]\n")
        print("\n".join(f"  {verb:8} {meaning}" for verb, meaning in VERBS.items()))
        print("\nhfaccel VERB --help tells more about one of them.")
        return 0 if given else 2
    return guarded(lambda: _run_verb(given[0], given[1:]))


def _run_verb(verb: str, arguments: list[str]) -> int:
    if verb not in VERBS:
        raise UsageError(f"the verb must be one of {', '.join(VERBS)}, but got {verb!r}")
    code: int = importlib.import_module(f"hfaccel.commands.{verb}").run(arguments)
    return code


def guarded(command: Callable[[], int]) -> int:
    """Run a command; an expected failure is one line on standard error and its exit code."""
    try:
        return command()
    except HfaccelError as error:
        print(f"hfaccel: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; that is no failure of ours
        return 0

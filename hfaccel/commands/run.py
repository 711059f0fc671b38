"""hfaccel-run: start an unchanged Python program in the best environment for this machine.

hfaccel-run [options] script.py [arguments]
hfaccel-run [options] -m module [arguments]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from hfaccel.commands import guarded
from hfaccel.launcher import Launch, become, prepare

USAGE = """hfaccel-run [options] [--] script.py [arguments]
       hfaccel-run [options] -m module [arguments]"""


def main() -> int:
    return guarded(lambda: run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    parser = _parser()
    head, program = split(arguments, parser)
    options = parser.parse_args(head)
    launch = prepare(program, _overrides(options), os.environ)
    if options.dry_run:
        print(_as_json(launch) if options.json else _as_text(launch))
        return 0
    if options.verbose or options.json:
        print(_as_json(launch) if options.json else _as_text(launch), file=sys.stderr)
    for note in launch.notes:
        print(f"hfaccel-run: {note}", file=sys.stderr)
    become(launch)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hfaccel-run",
        usage=USAGE,
        description="Start an unchanged Python program in the best environment for this machine.",
        allow_abbrev=False,
    )
    parser.add_argument("--threads", metavar="N", help="compute threads (default: the cores of the budget)")
    parser.add_argument(
        "--memory-allocator",
        metavar="NAME",
        default="auto",
        help="auto, default (leave it), mimalloc, jemalloc, tcmalloc, glibc, or a path to a library",
    )
    parser.add_argument("--cores-list", metavar="LIST", help="bind to these CPU numbers, for example 0-3,8")
    parser.add_argument("--no-bind", action="store_true", help="leave the affinity mask as it is")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and start nothing")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--verbose", action="store_true", help="print the plan, then start the program")
    return parser


def split(arguments: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """hfaccel-run's own options, and the program with its arguments, which are not touched.

    Options may be spelled with underscores (`--memory_allocator`).
    """
    takes_value = {
        name for action in parser._actions for name in action.option_strings if action.nargs is None
    }
    head: list[str] = []
    rest = list(arguments)
    while rest:
        if rest[0] == "--":
            return head, rest[1:]
        if not rest[0].startswith("--") and rest[0] != "-h":
            return head, rest
        name, equals, value = rest.pop(0).partition("=")
        name = name.replace("_", "-")
        head.append(name + equals + value)
        if name in takes_value and not equals and rest:
            head.append(rest.pop(0))
    return head, rest


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    overrides: dict[str, Any] = {"allocator": options.memory_allocator}
    if options.threads is not None:
        overrides["threads"] = options.threads
    if options.no_bind:
        overrides["affinity"] = "off"
    if options.cores_list is not None:
        overrides["affinity"] = options.cores_list
    return overrides


def _as_json(launch: Launch) -> str:
    import json

    return json.dumps(launch.to_dict(os.environ))


def _as_text(launch: Launch) -> str:
    import shlex

    from hfaccel.tables import render

    rows = [[c.knob, c.value, c.source, c.reason] for c in launch.plan.choices]
    table = render("plan", ["knob", "value", "source", "reason"], rows)
    variables = [f"{name}={shlex.quote(value)}" for name, value in launch.changes(os.environ).items()]
    line = " ".join(["env", *variables, shlex.join(launch.command)])
    cpus = launch.plan["affinity"].value
    if cpus:
        line = f"taskset -c {','.join(map(str, cpus))} {line}"
    return f"{table}\nthe same without hfaccel (its children inherit the variables):\n{line}"


if __name__ == "__main__":
    sys.exit(main())

"""hfaccel bench: measure this machine. `hfaccel bench KIND --help` tells more about one kind."""

from __future__ import annotations

import importlib

from hfaccel.errors import UsageError

# A kind is a row here and a module hfaccel.commands.bench_KIND with a function `run`. Everything else is a
# model or a script, which hfaccel.commands.bench_study measures.
KINDS = {
    "memory": "where allocators place buffers, what that costs, and what huge pages change",
    "compare": "two result files: which cells became faster, which slower",
    "report": "a result as a page with pictures and every number",
}
STUDY = "study"


def run(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        from hfaccel.commands.bench_options import print_help

        print_help(KINDS)
        return 0
    if not arguments:
        kinds = ", ".join(KINDS)
        raise UsageError(f"a model, a script or a kind ({kinds}) must be given; see hfaccel bench --help")
    kind, rest = divided(arguments)
    code: int = importlib.import_module(f"hfaccel.commands.bench_{kind}").run(rest)
    return code


def divided(arguments: list[str]) -> tuple[str, list[str]]:
    """The kind and its arguments. `--compare` is the kind of that name."""
    first = arguments[0] if arguments else ""
    if first == "--compare":
        return "compare", arguments[1:]
    return (first, arguments[1:]) if first in KINDS else (STUDY, arguments)

"""hfaccel bench: measure this machine. `hfaccel bench KIND --help` tells more about one kind."""

from __future__ import annotations

import argparse
import importlib

# A kind is a row here and a module hfaccel.commands.bench_KIND with a function `run`.
KINDS = {
    "memory": "where allocators place buffers, what that costs, and what huge pages change",
    "report": "a page of HTML of a result, with pictures and every number",
}


def run(arguments: list[str]) -> int:
    kinds = "\n".join(f"  {kind:10} {meaning}" for kind, meaning in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="hfaccel bench",
        description=__doc__,
        epilog=f"kinds, each with --json and --help:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("kind", choices=KINDS, help="what to measure")
    kind = parser.parse_args(arguments[:1]).kind
    code: int = importlib.import_module(f"hfaccel.commands.bench_{kind}").run(arguments[1:])
    return code

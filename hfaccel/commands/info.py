"""hfaccel info: what this machine and container allow, and what hfaccel-run would choose."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hfaccel.errors import UsageError
from hfaccel.host import capture_host
from hfaccel.information import info


def run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hfaccel info", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--root", default="/", help="read another host: a folder with its /sys and /proc, or a captured file"
    )
    parser.add_argument(
        "--capture",
        metavar="FILE",
        help="write what is read of this machine to FILE, for others to look at (- is standard output); "
        "it is text, with paths of yours in it: read it before you send it",
    )
    options = parser.parse_args(arguments)
    if options.capture is not None and options.root != "/":
        raise UsageError(f"--capture must be of this machine, but got --root {options.root} too")
    if options.capture is not None:
        return _capture(options.capture)
    information = info(options.root)
    print(json.dumps(information.to_dict(), indent=1) if options.json else information)
    return 0


def _capture(path: str) -> int:
    text = capture_host()
    if path == "-":
        print(text, end="")
        return 0
    try:
        Path(path).write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UsageError(
            f"--capture must name a file that can be written, but {path!r} is not ({error.strerror})"
        ) from None
    print(f"{path}: {len(text) / 1024:.0f} KiB; hfaccel info --root {path} reads it")
    return 0

"""hfaccel info: what this machine and container allow, and what hfaccel-run would choose."""

from __future__ import annotations

import argparse
import json

from hfaccel.information import info


def run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hfaccel info", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--root", default="/", help="read a captured tree of /sys and /proc below this folder"
    )
    options = parser.parse_args(arguments)
    information = info(options.root)
    print(json.dumps(information.to_dict(), indent=1) if options.json else information)
    return 0

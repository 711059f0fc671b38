"""hfaccel bench compare A.json B.json: which cells of two result files became faster, which slower.

A cell counts by its ratio to the baseline of its own file, so that files of different days, or of different
machines, can be compared. The exit code is 1 if a cell became slower or wrong.
"""

from __future__ import annotations

import argparse
import json

from hfaccel.bench.results import read
from hfaccel.bench.verdicts import SLOWER, compare, differences, only_in_one
from hfaccel.commands import bench_tables
from hfaccel.errors import UsageError


def run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hfaccel bench compare", description=__doc__, allow_abbrev=False)
    parser.add_argument("first", metavar="A.json", help="the earlier result")
    parser.add_argument("second", metavar="B.json", help="the later result")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    first, second = read(options.first), read(options.second)
    rows, missing = compare(first, second), only_in_one(first, second)
    if not rows:
        raise UsageError(
            "two results must have cells in common, but these have none; measure both with the same options"
        )
    if options.json:
        print(json.dumps([row.to_dict() for row in rows]))
    else:
        print(bench_tables.comparison(rows), end="")
        said = [f"different {line}" for line in differences(first, second)]
        said += [f"cells in one file only: {missing[0]} and {missing[1]}"] if any(missing) else []
        print("\n".join(said))
    return int(any(row.verdict == SLOWER or row.reason == "wrong in the second" for row in rows))

"""What the allocator alone gains: transformers' own BERT-base at (32,128), glibc's defaults against hfaccel.

The model is unchanged and eager on both sides, in float32 and bfloat16; with --worker it runs in a thread
of its own, as in a server. docs/method.md names the traps of other allocators.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hfaccel.bench import Side, compare
from report import check, save

CASES = str(Path(__file__).with_name("cases.py")) + ":forward"
LAUNCHER = (str(Path(sys.executable).with_name("hfaccel-run")),)
BARS = {"float32": 1.08, "bfloat16": 1.12}  # times faster


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7, help="pairs of samples per row")
    parser.add_argument("--worker", action="store_true", help="compute in a worker thread")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--only", default="", help="rows whose name contains this, e.g. bfloat16")
    arguments = parser.parse_args()
    shape = {"model": "bert-base", "batch": arguments.batch, "length": arguments.length}
    rows = []
    for dtype, bar in BARS.items():
        stock = {**shape, "dtype": dtype, "worker": arguments.worker}
        for fast in (
            Side("under hfaccel-run", CASES, stock, LAUNCHER),
            Side("configure() alone", CASES, {**stock, "configured": True}),
        ):
            name = f"{dtype}, {fast.name}"
            if arguments.only in name:
                rows.append(measure(name, Side("glibc", CASES, stock), fast, bar, arguments.pairs))
    save("allocator", rows)
    return check(f"eager BERT-base ({arguments.batch},{arguments.length}), times faster", rows)


def measure(name: str, base: Side, fast: Side, bar: float, pairs: int) -> dict[str, Any]:
    result = compare(base, fast, pairs=pairs)
    print(f"{name}: {result.ratio:.3f} times faster", file=sys.stderr, flush=True)
    return {"name": name, "bar": bar, "measured": result.ratio, **result.to_dict()}


if __name__ == "__main__":
    sys.exit(main())

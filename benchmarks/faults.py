"""Minor page faults of one warm forward of BERT-base at (32,128): stock against each way of hfaccel.

The model is transformers' own on every side: what is measured is the allocator, not the engine.
`hfaccel.optimize` is measured as well, in the way in which most programs use it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from hfaccel.bench import Side, compare
from report import check, save

CASES = str(Path(__file__).with_name("cases.py")) + ":faults"
LAUNCHER = (str(Path(sys.executable).with_name("hfaccel-run")),)
BAR = 200
SHAPE = {"model": "bert-base", "batch": 32, "length": 128}
WAYS = {
    "under hfaccel-run": Side("hfaccel-run", CASES, SHAPE, launcher=LAUNCHER),
    "configure() alone": Side("configure", CASES, {**SHAPE, "configured": True}),
    "optimize()": Side("optimize", CASES, {**SHAPE, "optimized": True}),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1, help="pairs of samples per row; faults hardly vary")
    arguments = parser.parse_args()
    rows = []
    for way, side in WAYS.items():
        for thread in ("main", "worker"):
            extra = {"worker": thread == "worker"}
            base = Side("glibc", CASES, {**SHAPE, **extra})
            fast = Side(side.name, CASES, {**side.arguments, **extra}, launcher=side.launcher)
            result = compare(base, fast, pairs=arguments.pairs)
            stock, ours = (
                statistics.median(sample["faults"] for sample in samples)
                for samples in (result.base_samples, result.fast_samples)
            )
            row = {"name": f"{way}, {thread} thread", "bar": BAR, "measured": ours, "stock": stock}
            rows.append({**row, **result.to_dict()})
            print(f"{row['name']}: {stock:,.0f} -> {ours:,.0f} page faults", file=sys.stderr, flush=True)
    save("faults", rows)
    return check("minor page faults per forward, BERT-base (32,128)", rows, at_most=True)


if __name__ == "__main__":
    sys.exit(main())

"""Memory of a process after 10,000 forwards of random shape, over that after 500.

A small BERT, batches of 1 to 8 sequences of 1 to 128 tokens; in the main and in a worker thread. Each row is
one process; with --stock there are rows for plain Python too, which no bar concerns.

oneDNN keeps what it compiled for up to 1024 shapes, in blocks that lie between the activations: that is what
grows, and --primitive-cache shows what is left of it with fewer.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hfaccel.bench import Side, Worker
from report import check, save

CASES = str(Path(__file__).with_name("cases.py")) + ":growth"
LAUNCHER = (str(Path(sys.executable).with_name("hfaccel-run")),)
PYTHON = (sys.executable,)
BAR = 1.05
WAYS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "under hfaccel-run": (LAUNCHER, {}),
    "configure() alone": (PYTHON, {"configured": True}),
    "optimize()": (PYTHON, {"optimized": True}),
    "optimize() under hfaccel-run": (LAUNCHER, {"optimized": True}),
}
STOCK = {"plain python": (PYTHON, {})}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=500, help="forwards before the memory counts")
    parser.add_argument("--forwards", type=int, default=10_000)
    parser.add_argument("--only", default="", help="rows whose name contains this, e.g. optimize")
    parser.add_argument("--stock", action="store_true", help="measure plain Python too")
    parser.add_argument("--primitive-cache", type=int, help="shapes that oneDNN keeps; its default is 1024")
    arguments = parser.parse_args()
    cache = arguments.primitive_cache
    variables = {} if cache is None else {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(cache)}
    checkpoints = sorted({arguments.first, arguments.forwards // 2, arguments.forwards})
    ways = {**WAYS, **(STOCK if arguments.stock else {})}
    rows = []
    for way, (launcher, extra) in ways.items():
        for thread in ("main", "worker"):
            name = f"{way}, {thread} thread"
            if arguments.only in name:
                case = {"checkpoints": checkpoints, "worker": thread == "worker", **extra}
                rows.append(measure(name, Side(name, CASES, case, launcher, variables)))
    save("growth", rows)
    judged = [row for row in rows if not row["name"].startswith("plain")]
    return check(
        f"memory after {arguments.forwards} forwards over that after {arguments.first}", judged, at_most=True
    )


def measure(name: str, side: Side) -> dict[str, Any]:
    with Worker(side) as worker:
        sample = worker.sample()
    resident = sample["resident"]
    growth = resident[-1] / resident[0]
    shown = ", ".join(f"{size >> 20}" for size in resident)
    print(f"{name}: {shown} MiB, {growth:.3f}, in {sample['seconds']:.0f} s", file=sys.stderr, flush=True)
    return {"name": name, "bar": BAR, "measured": growth, "resident": resident}


if __name__ == "__main__":
    sys.exit(main())

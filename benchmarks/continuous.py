"""Many requests at once: `python benchmarks/continuous.py --help`.

Eight requests with prompts of 16 to 512 tokens and 16 to 128 new tokens each, greedy, come at the same time.
`hfaccel.serve.Generator` serves them, and transformers' own continuous batching, and `generate` one after
another, as the stock pipeline does for a list. Every engine is a process of its own with the same number of
threads; all take turns. Shapes of published models, random weights (generation_models.py).
It ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from continuous_engines import CONTINUOUS, ENGINES, NEW, ONE_BY_ONE
from generation_bars import ratio
from generation_models import CONFIGURATIONS
from hfaccel.bench import Side
from hfaccel.tables import render
from report import check, save
from turns import Engines, rounds

CASES = str(Path(__file__).with_name("continuous_engines.py"))
BARS = {ONE_BY_ONE: 5.0, CONTINUOUS: 2.0}  # times faster than these
WORK = "eight requests"
Row = dict[str, Any]


def side(engine: str, model: str, threads: int) -> Side:
    variables = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    return Side(engine, f"{CASES}:serve", {"engine": engine, "model": model}, (sys.executable,), variables)


def measure(model: str, options: argparse.Namespace) -> list[Row]:
    running = Engines([side(name, model, options.threads) for name in options.engines])
    try:
        turns = rounds(running, [WORK], model, options.pairs)[WORK]
    finally:
        running.stop()
    rows = [
        row(model, name, [turn[name] for turn in turns]) | running.facts[name] for name in running.workers
    ]
    return rows + [{"case": model, "engine": name, "failed": why} for name, why in running.failed.items()]


def row(model: str, engine: str, seconds: Sequence[float]) -> Row:
    speed = round(sum(NEW) / statistics.median(seconds), 1)
    return {"case": model, "engine": engine, "tokens_per_second": speed, "seconds": [*seconds]}


def judged(rows: Sequence[Row]) -> list[Row]:
    """Rows for report.check: every engine of hfaccel against the others."""
    measured = {(told["case"], told["engine"]): told for told in rows if "seconds" in told}
    return [
        {
            "name": f"{case}: {engine} against {rival}",
            "measured": ratio(measured[case, rival]["seconds"], told["seconds"]),
            "bar": bar,
        }
        for (case, engine), told in measured.items()
        if engine.startswith("hfaccel")
        for rival, bar in BARS.items()
        if (case, rival) in measured
    ]


def show(model: str, rows: Sequence[Row]) -> None:
    cells = [[told["engine"], str(told.get("tokens_per_second", told.get("failed")))] for told in rows]
    print(render(f"{model}: new tokens per second", ["engine", "tokens/s"], cells), flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="turns that count, after one that does not")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every engine")
    models = list(CONFIGURATIONS)
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--dry", action="store_true", help="write no file of results")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    rows: list[Row] = []
    for model in options.models:
        taken = measure(model, options)
        show(model, taken)
        rows += taken
    if not options.dry:
        save("continuous", rows)
    return check("bars: times faster", judged(rows))


if __name__ == "__main__":
    sys.exit(main())

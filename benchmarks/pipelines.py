"""Pipelines against transformers' own, in pairs. `python benchmarks/pipelines.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hfaccel.bench import Side, compare
from report import check, save

CASES = str(Path(__file__).with_name("pipeline_cases.py"))
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
}
# name, function, arguments of both sides, batch size of transformers' side, ratios to reach: fp32, bf16, int8
ROWS: list[tuple[str, str, dict[str, Any], int, tuple[float, float, float]]] = [
    ("MiniLM features, nested lists", "features", {}, 32, (3.0, 5.2, 7.0)),
    ("MiniLM features, tensors", "features", {"tensors": True}, 32, (3.1, 6.0, 9.0)),
    ("BERT-base classification", "classification", {}, 32, (3.6, 6.5, 9.5)),
    ("BERT-base classification against batch_size=1", "classification", {}, 1, (1.7, 3.1, 4.5)),
]
COUNTS = {"features": 512, "classification": 96}
WAITING = 0.03  # of the run, for the tokenizer; at most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="pairs of samples per row, about a minute each")
    parser.add_argument("--only", default="", help="rows whose name contains this, e.g. 'tensors'")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument("--texts", type=int, default=0, help="texts of every row, instead of 512 and 96")
    arguments = parser.parse_args()
    speed: list[dict[str, Any]] = []
    for name, function, given, batch_size, bars in ROWS:
        for precision, bar in zip(PRECISIONS, bars, strict=True):
            title = f"{name}, {precision}"
            if arguments.only in title and precision in arguments.precision:
                given = {**given, "count": arguments.texts or COUNTS[function]}
                row = measure(
                    f"{CASES}:{function}", given, batch_size, PRECISIONS[precision], arguments.pairs
                )
                speed.append({"name": title, "bar": bar, **row})
                print(f"{title}: {row['measured']:.2f} times faster", file=sys.stderr, flush=True)
    waiting = [
        {"name": f"{row['name']}: waiting for the tokenizer", "bar": WAITING, "measured": row["waited"]}
        for row in speed
    ]
    save("pipelines", [*speed, *waiting])
    missed = check("speed against transformers' pipeline, times faster", speed)
    return missed | check("share of the run", waiting, at_most=True)


def measure(
    case: str, given: dict[str, Any], batch_size: int, optimize: dict[str, Any], pairs: int
) -> dict[str, Any]:
    result = compare(
        Side("transformers", case, {**given, "batch_size": batch_size}),
        Side("hfaccel", case, {**given, "batch_size": 32, "optimize": optimize}),
        pairs=pairs,
    )
    return {"measured": result.ratio, "waited": result.fast_samples[-1]["waited"], **result.to_dict()}


if __name__ == "__main__":
    sys.exit(main())

"""Speed of optimize() against transformers' eager model, in pairs. `python benchmarks/speed.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hfaccel.bench import Side, compare
from report import check, save

CASES = str(Path(__file__).with_name("cases.py")) + ":forward"

# model, batch, sequence length, the ratio to reach
ROWS = [
    ("minilm", 1, 16, 1.7),
    ("minilm", 8, 128, 1.2),
    ("minilm", 32, 128, 1.2),
    ("bert-base", 1, 16, 1.9),
    ("bert-base", 1, 128, 1.25),
    ("bert-base", 8, 128, 1.2),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7, help="pairs of samples per row")
    parser.add_argument("--only", default="", help="rows whose name contains this, e.g. minilm")
    arguments = parser.parse_args()
    rows = []
    for model, batch, length, bar in ROWS:
        name = f"{model} ({batch},{length})"
        if arguments.only not in name:
            continue
        shape = {"model": model, "batch": batch, "length": length}
        result = compare(
            Side("eager", CASES, shape),
            Side("hfaccel", CASES, {**shape, "optimized": True}),
            pairs=arguments.pairs,
        )
        rows.append({"name": name, "bar": bar, "measured": result.ratio, **result.to_dict()})
        print(f"{name}: {result.ratio:.2f} times faster", file=sys.stderr, flush=True)
    save("speed", rows)
    return check("speed against eager, fp32, times faster", rows)


if __name__ == "__main__":
    sys.exit(main())

"""Speed of optimize() against transformers' eager model, in pairs. `python benchmarks/speed.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hfaccel.bench import Side, compare
from report import check, save

CASES = str(Path(__file__).with_name("cases.py"))

SHAPES = [(1, 16), (1, 128), (8, 128), (1, 512), (8, 16)]
BERT = {  # the ratios to reach, in the order of SHAPES
    "fp32": (2.4, 1.33, 1.3, 1.2, 1.5),
    "bf16": (4.2, 2.6, 2.6, 2.4, 3.1),
    "int8": (6.5, 4.6, 4.6, 3.8, 5.5),
}
Row = tuple[str, str, dict[str, Any], str, float]  # name, function of cases.py, its arguments, precision, bar


def forward(model: str, precision: str, batch: int, length: int, bar: float) -> Row:
    shape = {"model": model, "batch": batch, "length": length}
    return f"{model} {precision} ({batch},{length})", "forward", shape, precision, bar


ROWS = [
    forward("minilm", "fp32", 1, 8, 3.3),
    forward("minilm", "bf16", 1, 8, 4.6),
    forward("minilm", "fp32", 1, 16, 1.7),
    forward("minilm", "fp32", 8, 128, 1.2),
    forward("minilm", "fp32", 32, 128, 1.2),
    *(
        forward("bert-base", precision, batch, length, bar)
        for precision, bars in BERT.items()
        for (batch, length), bar in zip(SHAPES, bars, strict=True)
    ),
    ("sentence-transformers fp32", "sentences", {"count": 256}, "fp32", 1.4),
    ("sentence-transformers bf16", "sentences", {"count": 256}, "bf16", 2.6),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of samples per row")
    parser.add_argument("--only", default="", help="rows whose name contains this, e.g. int8 (1,16)")
    arguments = parser.parse_args()
    rows = []
    for name, function, shape, precision, bar in ROWS:
        if arguments.only not in name:
            continue
        result = compare(
            Side("eager", f"{CASES}:{function}", shape),
            Side("hfaccel", f"{CASES}:{function}", {**shape, "optimized": precision}),
            pairs=arguments.pairs,
        )
        rows.append({"name": name, "bar": bar, "measured": result.ratio, **result.to_dict()})
        print(f"{name}: {result.ratio:.2f} times faster", file=sys.stderr, flush=True)
    save("speed", rows)
    return check("speed against eager fp32, times faster", rows)


if __name__ == "__main__":
    sys.exit(main())

"""Two checkouts of hfaccel on the same work: is anything slower than before?

`python benchmarks/compare_trees.py ../before` compares this checkout with another one, which has an
environment of its own (`make .venv/.installed` there). Each side is a process of its own, and the two take
turns. The bar is 0.97: at most 3 % slower, as the median of the ratios.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfaccel.bench.pairs import Side, compare
from report import check, save

ROOT = Path(__file__).parent.parent
BAR = 0.97
FORWARD, VISION = "benchmarks/cases.py:forward", "benchmarks/vision_cases.py:forward"
PRECISIONS = ("fp32", "bf16", "int8")
SHAPES = {"minilm": ((1, 8), (1, 128), (8, 128)), "bert-base": ((1, 16), (1, 128), (8, 128), (1, 512))}
IMAGES = ("vit-base", "resnet-50", "mobilenet-v2", "whisper-base")


@dataclass(frozen=True)
class Case:
    name: str
    function: str
    arguments: dict[str, Any]


def cases() -> list[Case]:
    texts = [
        Case(
            f"{model} ({batch},{length}) {precision}",
            FORWARD,
            dict(model=model, batch=batch, length=length, optimized=precision, configured=True),
        )
        for model, shapes in SHAPES.items()
        for precision in PRECISIONS
        for batch, length in shapes
    ]
    documents = [
        Case(f"512 docstrings {each}", "benchmarks/cases.py:sentences", dict(count=512, optimized=each))
        for each in PRECISIONS
    ]
    images = [Case(f"{model} fp32", VISION, dict(model=model, batch=1, optimized="fp32")) for model in IMAGES]
    return [*texts, *documents, *images]


def side(name: str, tree: Path, case: Case, threads: int) -> Side:
    environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    python = str(tree / ".venv/bin/python")
    return Side(name, str(tree / case.function), case.arguments, (python,), environment)


def measure(case: Case, before: Path, options: argparse.Namespace) -> dict[str, Any]:
    old, new = (
        side(name, tree, case, options.threads) for name, tree in (("before", before), ("after", ROOT))
    )
    found = compare(old, new, pairs=options.rounds)
    return {"name": case.name, "measured": found.ratio, "bar": BAR, **found.to_dict(), **asdict(case)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of each case (default 5)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose names contain this")
    options = parser.parse_args()
    before = options.before.resolve()
    rows = [measure(case, before, options) for case in cases() if options.only in case.name]
    print(f"saved in {save('trees', rows)}")
    return check("times as fast as before", rows)


if __name__ == "__main__":
    sys.exit(main())

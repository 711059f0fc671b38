"""Pipelines against transformers' own, in turn. `python benchmarks/pipelines.py --help`."""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from hfaccel.bench import Side, take_turns
from report import check, save

CASES = str(Path(__file__).with_name("pipeline_cases.py"))
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
}
# name, function, its arguments, ratios to reach in fp32, bf16, int8 against transformers' batch size
GROUPS: list[tuple[str, str, dict[str, Any], dict[int, tuple[float, float, float]]]] = [
    ("MiniLM features, nested lists", "features", {}, {32: (3.0, 5.2, 7.0)}),
    ("MiniLM features, tensors", "features", {"tensors": True}, {32: (3.1, 6.0, 9.0)}),
    ("BERT-base classification", "classification", {}, {32: (3.6, 6.5, 9.5), 1: (1.7, 3.1, 4.5)}),
]
COUNTS = {"features": 512, "classification": 96}
WAITING = 0.03  # of the run, for the tokenizer; at most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="samples of each side, about a minute each")
    parser.add_argument("--only", default="", help="groups whose name contains this, e.g. 'tensors'")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument("--texts", type=int, default=0, help="texts of every group, instead of 512 and 96")
    arguments = parser.parse_args()
    speed: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    for name, function, given, stocks in GROUPS:
        if arguments.only in name:
            given = {**given, "count": arguments.texts or COUNTS[function]}
            turns = measure(f"{CASES}:{function}", given, list(stocks), arguments)
            for precision in arguments.precision:
                speed += [row(name, precision, size, bars, turns) for size, bars in stocks.items()]
                waited = statistics.median(turn[precision]["waited"] for turn in turns)
                waiting.append({"name": f"{name}, {precision}", "bar": WAITING, "measured": waited})
    save("pipelines", [*speed, *({**one, "name": f"{one['name']}: waiting"} for one in waiting)])
    missed = check("speed against transformers' pipeline, times faster", speed)
    return missed | check(
        "share of the run in which the model waits for the tokenizer", waiting, at_most=True
    )


def measure(
    case: str, given: dict[str, Any], stocks: list[int], arguments: argparse.Namespace
) -> list[dict[str, dict[str, float]]]:
    """In each turn a sample of every side: transformers' by batch size, ours by precision."""
    sides = [Side(f"batch_size={size}", case, {**given, "batch_size": size}) for size in stocks]
    for precision in arguments.precision:
        own = {**given, "batch_size": 32, "optimize": PRECISIONS[precision]}
        sides.append(Side(precision, case, own))
    names = [side.name for side in sides]
    show = partial(print, "a turn is done", file=sys.stderr, flush=True)
    return [dict(zip(names, turn, strict=True)) for turn in take_turns(sides, arguments.turns, show)]


def row(
    name: str, precision: str, size: int, bars: tuple[float, ...], turns: list[dict[str, dict[str, float]]]
) -> dict[str, Any]:
    stock, own = ([turn[side]["seconds"] for turn in turns] for side in (f"batch_size={size}", precision))
    ratios = [one / other for one, other in zip(stock, own, strict=True)]
    return {
        "name": f"{name}, {precision}, against batch_size={size}",
        "bar": bars[list(PRECISIONS).index(precision)],
        "measured": statistics.median(ratios),
        "ratios": ratios,
        "base_ms": statistics.median(stock) * 1e3,
        "fast_ms": statistics.median(own) * 1e3,
    }


if __name__ == "__main__":
    sys.exit(main())

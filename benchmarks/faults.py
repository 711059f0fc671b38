"""Minor page faults of one warm forward at (32,128): stock against each way of hfaccel.

The models are the engines' own on every side: what is measured is the allocator. torch computes BERT-base,
onnxruntime and OpenVINO one layer of it; they are left out, with the reason, where they are not installed.
`hfaccel.optimize` is measured as well, in the way in which most programs use it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from engines import ENGINES, export, missing
from hfaccel.bench import Side, compare
from report import check, save

CASES = str(Path(__file__).with_name("cases.py"))
LAUNCHER = (str(Path(sys.executable).with_name("hfaccel-run")),)
BAR = 200
SHAPE = {"batch": 32, "length": 128}
# What a way adds to the stock side.
WAYS: dict[str, dict[str, Any]] = {
    "under hfaccel-run": {"launcher": LAUNCHER},
    "configure() alone": {"configured": True},
}
OPTIMIZE = {"optimize()": {"optimized": True}}


class Row(NamedTuple):
    name: str
    case: str
    stock: dict[str, Any]  # arguments of the stock side
    way: dict[str, Any]  # what the other side has besides


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1, help="pairs of samples per row; faults hardly vary")
    parser.add_argument("--only", default="", help="rows whose name contains this, e.g. openvino")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "bert.onnx"))
        planned = [row for row in [*torch_rows(), *engine_rows(file)] if arguments.only in row.name]
        if any(row.case == "engine_faults" for row in planned):
            export(file)
        rows = [measure(row, arguments.pairs) for row in planned]
    save("faults", rows)
    return check("minor page faults per forward at (32,128)", rows, at_most=True)


def torch_rows() -> list[Row]:
    return in_both_threads("torch", "faults", {"model": "bert-base"}, {**WAYS, **OPTIMIZE})


def engine_rows(file: str) -> list[Row]:
    rows = []
    for name, engine in ENGINES.items():
        reason = missing(engine.needs, "onnx", "onnxscript")
        if reason:
            print(f"{name} is left out: {reason}", file=sys.stderr)
        else:
            rows += in_both_threads(name, "engine_faults", {"engine": name, "file": file}, WAYS)
    return rows


def in_both_threads(
    subject: str, case: str, stock: dict[str, Any], ways: dict[str, dict[str, Any]]
) -> list[Row]:
    return [
        Row(
            f"{subject}, {way}, {thread} thread",
            case,
            {**SHAPE, **stock, "worker": thread == "worker"},
            extra,
        )
        for way, extra in ways.items()
        for thread in ("main", "worker")
    ]


def measure(row: Row, pairs: int) -> dict[str, Any]:
    extra = {key: value for key, value in row.way.items() if key != "launcher"}
    case, launcher = f"{CASES}:{row.case}", row.way.get("launcher", (sys.executable,))
    base = Side("stock", case, row.stock)
    result = compare(base, Side("hfaccel", case, {**row.stock, **extra}, launcher), pairs=pairs)
    before, after = (
        statistics.median(sample["faults"] for sample in samples)
        for samples in (result.base_samples, result.fast_samples)
    )
    print(f"{row.name}: {before:,.0f} -> {after:,.0f} page faults", file=sys.stderr, flush=True)
    return {"name": row.name, "bar": BAR, "measured": after, "stock": before, **result.to_dict()}


if __name__ == "__main__":
    sys.exit(main())

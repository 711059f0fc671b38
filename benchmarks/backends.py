"""hfaccel against every engine on the same work: `python benchmarks/backends.py --help`.

Each engine is a process of its own, with the same number of threads and its best settings (peers.py). All
of a precision run at once and take turns; the ratios, peer's time over hfaccel's, are taken within a turn.
Where there are bars for the kernels that hfaccel used (bars.py), it ends with 1 if one is missed.
The peers are installed into build/peers on the first run, on top of the interpreter that runs this. The
peer ipex, only with `--engines ipex`, needs torch 2.8: it gets 7 GB in build/ipex, with a hfaccel of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))

import caps
from bars import BARS, judged
from corpus import texts
from environments import ROOT, interpreter
from hfaccel.host import read_host
from hfaccel.tables import render
from report import check, save
from turns import ENGINES, PEERS, Engines, medians, ratios, rounds, sides

SHAPES = {
    "bert-base": [(1, 16), (1, 128), (8, 128), (1, 512), (8, 16)],
    "minilm": [(1, 8), (1, 128), (8, 128)],
}
TEXTS = 512
# Of how many texts a batch is. In input order, padded, only eager is a fair rival; by length, where there is
# hardly any padding, each engine takes its best size.
BATCHES = {"in input order": [32], "by length": [8, 16, 32]}


def cosine(folder: Path, name: str, suffix: str) -> float:
    """The least cosine between an engine's vectors and those of eager fp32; 1 means equal."""
    one, two = (np.load(folder / f"{side.replace(' ', '-')}{suffix}.npy") for side in (name, "eager fp32"))
    one, two = (vectors.reshape(-1, vectors.shape[-1]).astype(np.float64) for vectors in (one, two))
    return float(((one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)).min())


def measure(precision: str, function: str, cases: list[str], suffixes: list[str], arguments: dict[str, Any],
            engines: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:  # fmt: skip
    """One row for each engine: for each case its ratio to hfaccel, median milliseconds, least cosine."""
    variables = {"OMP_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running = Engines(sides(precision, engines, function, arguments, folder, variables, interpreter))
        try:
            turns = rounds(running, cases, precision, options.rounds)
        finally:
            running.stop()
        base = f"hfaccel {precision}" if f"hfaccel {precision}" in running.workers else "eager fp32"
        of_case = {case: ratios(taken, base) for case, taken in turns.items()}
        times = {case: medians(taken) for case, taken in turns.items()}
        rows: list[dict[str, Any]] = [
            {
                "engine": engine,
                "ratio": {case: round(of_case[case][engine], 3) for case in cases},
                "ms": {case: times[case][engine] for case in cases},
                "cosine": min(cosine(folder, engine, suffix) for suffix in suffixes),
                **running.facts[engine],
            }
            for engine in running.workers
        ]
    rows += [{"engine": engine, "failed": reason} for engine, reason in running.failed.items()]
    return [{"precision": precision, "base": base, **row, **marked(row, options)} for row in rows]


def marked(row: dict[str, Any], options: argparse.Namespace) -> dict[str, str]:
    """Why this engine's instructions are not capped as asked, if they are not."""
    engine, precision = row["engine"].split()
    reason = caps.not_capped(engine, precision, options.isa, options.processor, row.get("kernels", ""))
    return {"not_capped": reason} if reason and "failed" not in row else {}


def show(title: str, cases: list[str], rows: list[dict[str, Any]]) -> None:
    cells = []
    for row in rows:
        name = row["engine"] + (" (not capped)" if row.get("not_capped") else "")
        if "failed" in row:
            cells.append([name, *["-"] * len(cases), row["failed"]])
            continue
        values = [f"{row['ratio'][case]:.2f} ({row['ms'][case]:.4g} ms)" for case in cases]
        cells.append([name, *values, f"{row['cosine']:.6f}"])
    print(render(title, ["engine", *cases, "least cosine"], cells), flush=True)
    for row in rows:
        if row.get("not_capped"):
            print(f"{row['engine']} is not capped: {row['not_capped']}", flush=True)


def models(precision: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for model in options.models:
        shapes = SHAPES[model]
        cases = [f"({batch},{length})" for batch, length in shapes]
        suffixes = [f"-{batch}-{length}" for batch, length in shapes]
        arguments = {"model": model, "shapes": shapes}
        taken = measure(precision, "forward", cases, suffixes, arguments, options.engines, options)
        show(f"{model}: time over that of {taken[0]['base']}", cases, taken)
        rows += [{"case": model, **row} for row in taken]
    return rows


def real_text(precision: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    file = ROOT / "build" / "peers" / "texts.json"  # what a process imports adds docstrings
    file.write_text(json.dumps(texts(options.texts)))
    for order in options.orders:
        batches = BATCHES[order]
        case = f"{options.texts} texts {order}"
        arguments = {"file": str(file), "batches": batches}
        engines = options.engines if len(batches) > 1 else ["eager"]
        taken = measure(precision, "embed", [case], [""], arguments, engines, options)
        show(f"minilm, real text: time over that of {taken[0]['base']}", [case], taken)
        rows += [{"case": case, **row} for row in taken]
    return rows


def judge(rows: list[dict[str, Any]]) -> int:
    """Print what there are bars for; 1 if one is missed. Bars differ by the kernels that hfaccel used."""
    kernels = next((row["kernels"] for row in rows if "kernels" in row), "unknown")
    if kernels not in BARS:
        print(f"no bars for hfaccel's kernel set {kernels!r}; there are for {', '.join(BARS)}")
        return 0
    title = f"bars of the kernel set {kernels}: best peer's time over hfaccel's"
    return check(title, judged(rows, BARS[kernels]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="turns that count, after one that does not")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every engine")
    parser.add_argument("--precisions", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--models", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    usual = [engine for engine in ENGINES if engine != "ipex"]
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=usual, help="ipex is not in the default"
    )
    parser.add_argument("--texts", type=int, default=TEXTS, help="docstrings to embed; 0 leaves that out")
    parser.add_argument("--orders", nargs="+", choices=list(BATCHES), default=list(BATCHES), help="of texts")
    parser.add_argument("--isa", choices=list(caps.CAPS), help="cap every engine's instructions (caps.py)")
    parser.add_argument("--setup", action="store_true", help="install the peers, and that is all")
    return parser.parse_args()


def main() -> int:
    options = parse()
    if options.setup:
        print(*dict.fromkeys(map(interpreter, options.engines)), sep="\n")
        return 0
    options.processor = read_host().processor
    caps.enforce(options.isa, options.processor)
    precisions, left_out = caps.precisions_here(options.precisions, options.processor.isa, options.isa)
    print(left_out, file=sys.stderr, flush=True, end="\n" * bool(left_out))
    rows = []
    for precision in precisions:
        rows += models(precision, options)
        rows += real_text(precision, options) if options.texts else []
    save(f"backends-{options.isa}" if options.isa else "backends", rows)
    return judge(rows)


if __name__ == "__main__":
    sys.exit(main())

"""Text generation by hfaccel against its peers: `python benchmarks/generation.py --help`.

Decoders of published shapes with random weights generate greedily. Each engine is a process of its own with
the same number of threads; all take turns. Two figures: the time of a token after 64 ("decode", the first
token left out), and the time to the first token after 512 ("prefill"). The bandwidth of the memory is
measured in the same turns. What each engine generates is checked against eager float32.
It ends with 1 if a bar is missed (generation_bars.py).
The first run installs the peers: llama.cpp into build/llama, compiled in 7 minutes on 2 cores; OpenVINO GenAI
into build/openvino-genai, 0.4 GB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import caps
import generation_checks
from environments import genai_environment, llama_environment
from generation_bars import judged, ratio
from generation_engines import BANDWIDTH, CELLS, ENGINES, not_offered
from generation_models import CONFIGURATIONS, MIXTURES, build
from hfaccel.bench import Side
from hfaccel.host import read_host
from hfaccel.tables import render
from report import check, save
from turns import Engines, Turn, rounds

CASES = str(Path(__file__).with_name("generation_engines.py"))
INTERPRETERS = {"llama.cpp": llama_environment, "openvino": genai_environment}
# Threads that wait do not spin, for the next engine's sake; but llama.cpp has a barrier behind each operator.
QUIET = {"OMP_WAIT_POLICY": "passive"}
Row = dict[str, Any]


def interpreter(engine: str) -> str:
    """The interpreter that has this row's engine; its environment is made unless it is there."""
    make = INTERPRETERS.get(engine.split()[0])
    return make() if make else sys.executable


def side(engine: str, model: str, threads: int) -> Side:
    variables = {"OMP_NUM_THREADS": str(threads)}
    if engine == BANDWIDTH:
        return Side(engine, f"{CASES}:bandwidth", {}, (sys.executable,), variables | QUIET)
    arguments = {"engine": engine, "model": model, "cells": list(CELLS)}
    spins = engine.startswith("llama.cpp")
    return Side(
        engine,
        f"{CASES}:generate",
        arguments,
        (interpreter(engine),),
        variables if spins else variables | QUIET,
        without=tuple(QUIET) if spins else (),
    )


def taking_part(engines: Sequence[str], bf16: bool) -> tuple[list[str], dict[str, str]]:
    """Who is measured, and why others of `engines` are not."""
    reasons = {engine: _reason(engine, bf16) for engine in engines}
    left_out = {engine: reason for engine, reason in reasons.items() if reason}
    return [engine for engine in engines if engine not in left_out], left_out


def _reason(engine: str, bf16: bool) -> str:
    if engine.endswith("bf16") and not bf16:
        return "nothing multiplies bfloat16 on this processor"
    return not_offered(engine)


def measure(model: str, options: argparse.Namespace) -> list[Row]:
    """One row for each engine."""
    engines, left_out = taking_part(options.engines, options.bf16)
    running = Engines([side(name, model, options.threads) for name in (BANDWIDTH, *engines)])
    try:
        turns = rounds(running, [*CELLS], model, options.pairs)
    finally:
        running.stop()
    rows = [row(name, turns, running.facts) for name in engines if name in running.workers]
    check_tokens(model, rows)
    failed = left_out | running.failed
    return [{"case": model, **told} for told in rows] + [
        {"case": model, "engine": name, "failed": reason} for name, reason in failed.items()
    ]


def row(engine: str, turns: Mapping[str, Sequence[Turn]], facts: Mapping[str, Row]) -> Row:
    """What the turns say about an engine. `share`: bytes of weights per second of decoding, as a part of the
    bandwidth."""
    seconds = {cell: [turn[engine] for turn in taken] for cell, taken in turns.items()}
    median = {cell: statistics.median(times) for cell, times in seconds.items()}
    read = best_bandwidth(turns, facts[BANDWIDTH]["bytes"])
    return {
        "engine": engine,
        "ms": {cell: round(value * 1e3, 3) for cell, value in median.items()},
        "seconds": {cell: [round(value, 6) for value in times] for cell, times in seconds.items()},
        "bandwidth": round(read),
        "share": round(facts[engine]["bytes"] / median["decode"] / read, 3),
        **facts[engine],
    }


def best_bandwidth(turns: Mapping[str, Sequence[Turn]], size: int) -> float:
    """Bytes per second, the best of all turns."""
    return size / min(turn[BANDWIDTH] for taken in turns.values() for turn in taken)


def check_tokens(model: str, rows: list[Row]) -> None:
    """Replace what each engine generated for the checks by how it compares with eager float32."""
    module = build(model)
    for told in rows:
        told |= generation_checks.compare(module, generation_checks.prompts(model), told.pop("checked"))


def show(model: str, rows: Sequence[Row], base: str) -> None:
    measured = {told["engine"]: told for told in rows if "seconds" in told}
    cells = []
    for told in rows:
        if "failed" in told:
            cells.append([told["engine"], "-", "-", "-", "-", told["failed"]])
            continue
        speeds = [_speed(measured, base, told, cell) for cell in CELLS]
        read = f"{told['bytes'] / 1e6:.0f}", f"{told['share']:.0%}"
        cells.append([told["engine"], *speeds, *read, f"{told['agreement']:.2f}, {told['regret']:.3f}"])
    columns = ["engine", *CELLS, "MB", "share", "agreement, regret"]
    bandwidth = next((f", {told['bandwidth'] / 1e9:.1f} GB/s" for told in measured.values()), "")
    print(render(f"{model}: ms per token (times faster than {base}){bandwidth}", columns, cells), flush=True)


def _speed(measured: Mapping[str, Row], base: str, told: Row, cell: str) -> str:
    text = f"{told['ms'][cell]:.4g}"
    if base not in measured:
        return text
    return f"{text} ({ratio(measured[base]['seconds'][cell], told['seconds'][cell]):.2f})"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="turns that count, after one that does not")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every engine")
    models = list(CONFIGURATIONS)
    usual = [model for model in models if model not in MIXTURES]
    parser.add_argument("--models", nargs="+", choices=models, default=usual)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--setup", action="store_true", help="install the peers, and that is all")
    parser.add_argument("--dry", action="store_true", help="write no file of results")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    if options.setup:
        print(*dict.fromkeys(map(interpreter, options.engines)), sep="\n")
        return 0
    options.bf16 = any(flag in read_host().processor.isa for flag in caps.BF16)
    base = "eager bf16" if options.bf16 else "eager fp32"
    rows: list[Row] = []
    for model in options.models:
        taken = measure(model, options)
        show(model, taken, base)
        rows += taken
        if not options.dry:
            save("generation", taken)
    return check(f"bars; the base is {base}", judged(rows, base))


if __name__ == "__main__":
    sys.exit(main())

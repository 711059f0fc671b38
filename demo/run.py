"""The main job, before and after: real texts, a real model, one table. `make demo` runs it.

Both sides stay alive and work in turn, piece by piece, so that a slow moment of the machine hits both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hfaccel.bench import Side, Worker
from hfaccel.tables import render
from job import CHUNK

JOB = str(Path(__file__).with_name("job.py")) + ":embed"
LAUNCHER = str(Path(sys.executable).with_name("hfaccel-run"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=384, help=f"number of texts, a multiple of {CHUNK}")
    count = parser.parse_args().texts
    if count < CHUNK or count % CHUNK:
        parser.error(f"`texts` must be a multiple of {CHUNK}, but got {count}")
    with tempfile.TemporaryDirectory() as folder:
        stock_file, fast_file = Path(folder) / "stock.pt", Path(folder) / "fast.pt"
        stock = Side("transformers", JOB, {"count": count, "output": str(stock_file)})
        fast = Side(
            "hfaccel",
            JOB,
            {"count": count, "output": str(fast_file), "optimized": True},
            launcher=(LAUNCHER,),
        )
        before, after = in_turn(stock, fast, pieces=2 * count // CHUNK)
        differences = difference(torch.load(stock_file), torch.load(fast_file))
    print(
        render(f"{count} docstrings, all-MiniLM-L6-v2", ["", stock.name, fast.name, ""], rows(before, after))
    )
    print(
        render(
            "embeddings, hfaccel against transformers",
            ["way", "largest difference", "least cosine"],
            differences,
        )
    )
    print(after[-1]["report"])
    return 0


def in_turn(stock: Side, fast: Side, pieces: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    before: list[dict[str, Any]] = []
    after: list[dict[str, Any]] = []
    with tqdm(total=2 * pieces + 2, desc="loading", file=sys.stderr) as bar, Worker(stock) as first:
        bar.update()
        with Worker(fast) as second:
            bar.update()
            for _ in range(pieces):
                for worker, samples in ((first, before), (second, after)):
                    samples.append(worker.sample())
                    bar.set_description(f"{samples[-1]['way']:8} {worker.side.name:12}")
                    bar.update()
    return before, after


def rows(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[list[str]]:
    table: list[list[str]] = []
    for way in ("pipeline", "loop"):
        speeds = [_median(samples, way, lambda s: s["texts"] / s["seconds"]) for samples in (before, after)]
        name = "pipeline(batch_size=32)" if way == "pipeline" else "loop over texts"
        # The ratio pair by pair: both sides did the same texts within seconds of each other.
        ratio = statistics.median(
            a["seconds"] / b["seconds"] for a, b in zip(before, after, strict=True) if a["way"] == way
        )
        table.append([f"{name}, texts/s", *(f"{speed:.1f}" for speed in speeds), f"{ratio:.2f} times"])
    singles = [sorted(t for s in samples for t in s["latencies"]) for samples in (before, after)]
    for name, share in (("p50", 0.50), ("p99", 0.99)):
        times = [single[min(int(len(single) * share), len(single) - 1)] for single in singles]
        table.append(
            [f"one text, {name}, ms", *(f"{t * 1e3:.1f}" for t in times), f"{times[0] / times[1]:.2f} times"]
        )
    for way in ("pipeline", "loop"):
        faults = [_median(samples, way, lambda s: s["faults"]) for samples in (before, after)]
        table.append([f"page faults per forward, {way}", *(f"{n:,.0f}" for n in faults), ""])
    peaks = [max(s["peak"] for s in samples) / 2**20 for samples in (before, after)]
    table.append(["peak memory, MiB", *(f"{peak:,.0f}" for peak in peaks), ""])
    return table


def _median(samples: list[dict[str, Any]], way: str, value: Any) -> float:
    return statistics.median(value(sample) for sample in samples if sample["way"] == way)


def difference(stock: dict[str, torch.Tensor], fast: dict[str, torch.Tensor]) -> list[list[str]]:
    result = []
    for way, expected in stock.items():
        largest = (expected - fast[way]).abs().max().item()
        cosine = torch.nn.functional.cosine_similarity(expected.double(), fast[way].double()).min().item()
        result.append([way, f"{largest:.1e}", f"{cosine:.9f}"])
    return result


if __name__ == "__main__":
    sys.exit(main())

"""One linear layer: torch's own path, oneDNN on plain layouts, oneDNN on packed weights.

Shows why weights are packed (docs/architecture.md) and where MIN_WIDTH lies. Weights are cold: as in a model,
each call meets another one, and together they exceed every cache. All sides run in one process, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from hfaccel.engine.linear import linear_pointwise
from hfaccel.engine.packed import PackedWeight, packed_bytes
from hfaccel.memory import Arena, padded
from hfaccel.tables import render

SHAPES = [(128, 128), (256, 256), (384, 384), (768, 768), (768, 3072), (3072, 768), (1024, 4096)]
TOKENS = [1, 8, 16, 128]
COLD_BYTES = 256 << 20  # together, above every cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times that each side is measured")
    rounds = parser.parse_args().rounds
    rows = []
    with torch.inference_mode():
        for inputs, outputs in SHAPES:
            for tokens in TOKENS:
                times = measure(inputs, outputs, tokens, rounds)
                stock = times["torch"]
                rates = [f"{stock / seconds:.2f}" for seconds in times.values()]
                rows.append([f"{inputs} -> {outputs}", tokens, f"{stock * 1e6:.0f}", *rates])
    titles = ["layer", "tokens", "torch, us", "torch", "rows", "columns", "packed"]
    print(render("speed relative to torch's own linear, cold weights", titles, rows))


def measure(inputs: int, outputs: int, tokens: int, rounds: int) -> dict[str, float]:
    """Seconds per call of each side, the median of `rounds`."""
    count = max(2, COLD_BYTES // (inputs * outputs * 4))
    count = min(count, 200)
    stock = [torch.randn(outputs, inputs) for _ in range(count)]
    arena = Arena(sum(padded(packed_bytes(weight)) for weight in stock))
    bias, input = torch.randn(outputs), torch.randn(tokens, inputs)

    def onednn(weight: torch.Tensor) -> torch.Tensor:
        return linear_pointwise(input, weight, bias, "none", [], "")

    sides: dict[str, tuple[list[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
        "torch": (stock, lambda weight: torch.nn.functional.linear(input, weight, bias)),
        "rows": (stock, onednn),
        "columns": ([weight.t().contiguous().t() for weight in stock], onednn),
        "packed": ([PackedWeight.pack(weight, arena).matrix for weight in stock], onednn),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (weights, call) in sides.items():
            start = time.perf_counter()
            for weight in weights:
                call(weight)
            taken[name].append((time.perf_counter() - start) / count)
    return {name: statistics.median(times) for name, times in taken.items()}


if __name__ == "__main__":
    main()

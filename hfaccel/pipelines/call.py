"""One call of a pipeline: the pipeline's three steps with the call's parameters, as the loop takes them."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hfaccel.pipelines.parts import Shape, Steps
from hfaccel.pipelines.run import Run
from hfaccel.pipelines.schedule import Limits
from hfaccel.upstream.of_pipelines import ChunkPipeline, PipelineIterator

if TYPE_CHECKING:
    from transformers.pipelines import Pipeline


@dataclass(frozen=True)
class Call:
    """`rows`: the call's batch_size. `collate` pads model inputs to one batch, as transformers does."""

    pipe: Pipeline
    collate: Callable[[list[object]], object]
    rows: int
    preprocess: dict[str, object]
    forward: dict[str, object]
    postprocess: dict[str, object]

    @property
    def chunked(self) -> bool:
        """Whether an input makes several model inputs: labels, windows of a long text, of a sound."""
        return isinstance(self.pipe, ChunkPipeline)

    def prepare(self, given: object) -> Iterator[tuple[object, bool]]:
        made = self.pipe.preprocess(given, **self.preprocess)
        if self.chunked:
            yield from ((part, part["is_last"]) for part in made)
        else:
            yield made, True

    def compute(self, batch: list[object]) -> list[object]:
        if self.rows == 1:
            return [self.pipe.forward(batch[0], **self.forward)]
        lengths = [shape(inputs).length or 0 for inputs in batch]
        # A new iterator for each batch: after a smaller batch, the same one would split outputs wrongly.
        padded = [self.collate(batch)]
        outputs = list(PipelineIterator(padded, self.pipe.forward, self.forward, loader_batch_size=self.rows))
        if len(outputs) != len(batch):
            raise ValueError(
                f"each input of a batch must be one row of its output, but {len(batch)} inputs gave "
                f"{len(outputs)}; call the pipeline with batch_size=1"
            )
        longest = max(lengths)
        return [self.pipe.hfaccel_row(*row, longest) for row in zip(outputs, lengths, strict=True)]

    def finish(self, outputs: list[Any]) -> object:
        if not self.chunked:
            return self.pipe.postprocess(outputs[0], **self.postprocess)
        for output in outputs:
            output.pop("is_last", None)  # missing if an interrupt made this run twice
        return self.pipe.postprocess(outputs, **self.postprocess)


def begin(call: Call, inputs: Any, tokens: int, note: Callable[[str], object]) -> Run:
    """Start the loop over `inputs`, with at most `tokens` tokens in a batch; `note`: see Run."""
    steps = Steps(call.prepare, shape, call.compute, call.finish)
    sized = isinstance(inputs, Sized)
    by_number = sized and not call.chunked  # like transformers
    read = map(inputs.__getitem__, range(len(inputs))) if by_number else iter(inputs)
    return Run(read, steps, Limits(call.rows, tokens), streams=not sized, note=note)


def shape(inputs: object) -> Shape:
    """Token sequences with an attention mask may be padded at will; everything else keeps its order."""
    if not isinstance(inputs, Mapping | UserDict):
        return Shape()
    tokens: Any = inputs.get("input_ids")
    if not _is_row(tokens) or not _is_row(inputs.get("attention_mask")):
        return Shape()
    tensors = [value for value in inputs.values() if torch.is_tensor(value)]
    if any(value.shape[:2] != tokens.shape for value in tensors):
        return Shape()
    return Shape(tokens.shape[1], frozenset(inputs.keys()))


def _is_row(value: object) -> bool:
    return torch.is_tensor(value) and value.ndim == 2 and value.shape[0] == 1

"""The figures of one run of a pipeline, from which advice and pictures are made."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfaccel.pipelines.timing import Batch


@dataclass(frozen=True)
class Phase:
    """Seconds of one step over all inputs; `waited`: seconds of these in which the model did not compute."""

    total: float
    waited: float


@dataclass(frozen=True)
class Figures:
    """What was measured in one run of a pipeline. Times are seconds, lengths tokens."""

    task: str
    model: str
    dtype: str
    loop: str  # "hfaccel" or "transformers"
    why_stock: str  # why transformers' loop ran in an optimized pipeline; "" if it did not
    fast_tokenizer: bool
    inputs: int
    seconds: float
    prepare: Phase  # the task's `preprocess`, for example tokenization
    compute: Phase  # `waited` is 0
    finish: Phase  # `postprocess`
    batches: tuple[Batch, ...]  # in order
    lengths: tuple[int, ...]  # of each model input, without padding
    spans: dict[str, tuple[tuple[float, float], ...]]  # prepare, compute, finish; since the run began

    @property
    def rows(self) -> float:
        """Mean number of sequences in a batch."""
        return statistics.fmean(batch.rows for batch in self.batches) if self.batches else 0.0

    @property
    def tokens(self) -> int:
        return sum(batch.tokens for batch in self.batches)

    @property
    def padding(self) -> float:
        """Share of the positions given to the model that are padding; 0 if there are no tokens."""
        positions = sum(batch.rows * batch.length for batch in self.batches if batch.length)
        return 1 - self.tokens / positions if positions else 0.0

    def share(self, seconds: float) -> float:
        """`seconds` as a share of the run."""
        return seconds / self.seconds if self.seconds else 0.0

"""Which model inputs form the next batch: pure decisions about lengths and counts, no tensors.

The next batch always holds the input that has waited longest, and its neighbours in length. So results
are returned in the order of the inputs, and an input waits at most for the inputs before it and one batch.
Sorting a whole window would pad a little less, but would hold back the window's first result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

TOKENS = 4096  # of a batch, padding included: larger batches gain nothing and need more memory
AHEAD = 8  # batches of model inputs that are prepared in advance, to choose from
LEAST_AHEAD, MOST_AHEAD = 16, 512  # model inputs
PIECE = 8  # inputs; handing over to the background thread costs some 50 microseconds, too much for one input
FIRST = 16  # model inputs; the model waits for no more than these before a batch


@dataclass(frozen=True)
class Limits:
    """Upper bounds of a batch: `rows` sequences, `tokens` of them all, padding included."""

    rows: int
    tokens: int = TOKENS


def next_batch(lengths: Sequence[int], limits: Limits) -> list[int]:
    """Indices, ascending, of the batch that holds sequence 0 and its nearest neighbours in length.

    `lengths` are in the order of arrival and not empty. A sequence longer than `limits.tokens` is a batch
    by itself.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    low = high = order.index(0)
    while high - low + 1 < limits.rows:
        longer = high + 1 < len(order) and _fits(lengths[order[high + 1]], high - low + 2, limits)
        shorter = low > 0 and _fits(lengths[order[high]], high - low + 2, limits)
        if not longer and not shorter:
            break
        up = lengths[order[high + 1]] - lengths[0] if longer else None
        down = lengths[0] - lengths[order[low - 1]] if shorter else None
        if down is None or (up is not None and up <= down):
            high += 1
        else:
            low -= 1
    return sorted(order[low : high + 1])


def _fits(longest: int, rows: int, limits: Limits) -> bool:
    return longest * rows <= limits.tokens


def least(rows: int, free: bool, streams: bool) -> int:
    """Model inputs that must be prepared before a batch is formed.

    `free`: their order may change. `streams`: reading one more may mean waiting for the program.
    """
    if not free:
        return rows
    return min(rows if streams or rows == 1 else 2 * rows, FIRST)


def window(rows: int) -> int:
    """Model inputs to choose a batch from, if their order may change."""
    return max(LEAST_AHEAD, min(rows * AHEAD, MOST_AHEAD))


def span(rows: int) -> int:
    """Inputs that may be read before they are answered: those that wait, and results held back by these."""
    return 2 * window(rows)


def ahead(rows: int, free: bool, waiting: int, tokens: int, mean: float) -> int:
    """How many model inputs to prepare while the model computes a batch of `tokens`, if `waiting` are
    prepared already. `mean`: tokens of a model input so far. A short batch is soon done, and the model must
    not wait."""
    if not free:
        return max(0, rows - waiting)
    piece = max(PIECE, min(rows, window(rows) // AHEAD))
    missing = window(rows) - waiting
    count = min(2 * piece, max(PIECE, math.ceil(3 * tokens / mean)))
    return min(missing, count) if missing >= piece else 0

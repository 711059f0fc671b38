"""Which waiting requests make the next batch, and when it starts: decisions, without clock and queue.

Every batch holds the oldest request, so none starves: the k-th in the queue is in the k-th batch at the
latest. Its company is chosen by length, because padded tokens cost a CPU as much as real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# What a batch costs beside its tokens, in tokens: Python and the weights, which are read once. Measured
# with MiniLM and BERT-base in float32: (1,8) takes about twice as long as its GEMMs alone would.
CALL_TOKENS = 16


class Limits(NamedTuple):
    max_tokens: int  # of a padded batch: its longest request times its requests
    max_batch: int  # requests
    max_delay: float  # seconds that a request may wait for company while the worker is free


def starts_in(sizes: Sequence[int], waited: float, limits: Limits) -> float:
    """Seconds until a free worker should start a batch; 0.0 for now.

    `sizes`: tokens of each waiting request. `waited`: seconds that the oldest of them has waited.
    """
    full = len(sizes) >= limits.max_batch or sum(sizes) >= limits.max_tokens
    return 0.0 if full else max(0.0, limits.max_delay - waited)


def next_batch(sizes: Sequence[int], limits: Limits) -> list[int]:
    """Indices, ascending, of the requests of the next batch. `sizes`: tokens, in order of arrival.

    Grows from the oldest request to neighbours in length, as far as that raises the share of real tokens in
    what the batch costs. Only the oldest alone may exceed `max_tokens`.
    """
    first, others = sizes[0], range(1, len(sizes))
    shorter = sorted((i for i in others if sizes[i] < first), key=lambda i: (-sizes[i], i))
    longer = sorted((i for i in others if sizes[i] >= first), key=lambda i: (sizes[i], i))
    batch, real, longest = [0], first, first
    best, best_share = 1, _share(first, first, 1)
    while True:
        count = len(batch) + 1
        grown = [
            (_share(real + sizes[side[0]], max(longest, sizes[side[0]]), count), side)
            for side in (shorter, longer)
            if side and max(longest, sizes[side[0]]) * count <= limits.max_tokens
        ]
        if not grown or count > limits.max_batch:
            return sorted(batch[:best])
        share, side = max(grown, key=lambda candidate: candidate[0])
        index = side.pop(0)
        batch.append(index)
        real, longest = real + sizes[index], max(longest, sizes[index])
        if share > best_share:
            best, best_share = count, share


def _share(real: int, longest: int, count: int) -> float:
    """Real tokens in what a padded batch costs."""
    return real / (CALL_TOKENS + longest * count)


def drained_in(requests: int, seconds_each: float | None) -> float:
    """Seconds until `requests` are done at the recent pace; a second where nothing is known yet."""
    return 1.0 if seconds_each is None else requests * seconds_each


def pace(recent: float | None, seconds: float, requests: int) -> float:
    """Seconds per request after one more batch: it counts a fifth, so about ten batches are remembered."""
    each = seconds / requests
    return each if recent is None else 0.8 * recent + 0.2 * each

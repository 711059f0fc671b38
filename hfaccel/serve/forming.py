"""Which waiting requests make the next batch, and when it starts: decisions, without clock and queue.

Every batch holds the oldest request, so none starves: the k-th in the queue is in the k-th batch at the
latest. Its company is chosen by length, because padded tokens cost a CPU as much as real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Limits(NamedTuple):
    max_tokens: int  # of a padded batch: its longest request times its requests
    max_batch: int  # requests
    max_delay: float  # seconds that a request may wait for company while the worker is free
    call_tokens: int  # what a call costs beside its tokens, in tokens


def starts_in(sizes: Sequence[int], waited: float, limits: Limits) -> float:
    """Seconds until a free worker should start a batch; 0.0 for now.

    `sizes`: tokens of each waiting request. `waited`: seconds that the oldest of them has waited.
    """
    full = len(sizes) >= limits.max_batch or sum(sizes) >= limits.max_tokens
    return 0.0 if full else max(0.0, limits.max_delay - waited)


def next_batch(sizes: Sequence[int], limits: Limits) -> list[int]:
    """Indices, ascending, of the requests of the next batch. `sizes`: tokens, in order of arrival.

    Grows from the oldest request to its neighbours in length and keeps what saves most against calls for
    each request alone. Only the oldest, alone, may exceed `max_tokens`.
    """
    first, others = sizes[0], range(1, len(sizes))
    shorter = sorted((i for i in others if sizes[i] < first), key=lambda i: (sizes[i], -i))
    longer = sorted((i for i in others if sizes[i] >= first), key=lambda i: (-sizes[i], -i))
    batch, real, longest = [0], first, first  # the nearest of each side is at its end
    best, best_saving = 1, 0
    while len(batch) < limits.max_batch:
        count = len(batch) + 1
        sides = [(side, sizes[side[-1]]) for side in (shorter, longer) if side]
        grown = [
            (saving(real + size, max(longest, size), count, limits.call_tokens), side)
            for side, size in sides
            if max(longest, size) * count <= limits.max_tokens
        ]
        if not grown:
            break
        saved, side = max(grown, key=lambda candidate: candidate[0])
        batch.append(side.pop())
        real, longest = real + sizes[batch[-1]], max(longest, sizes[batch[-1]])
        if saved > best_saving:
            best, best_saving = count, saved
    return sorted(batch[:best])


def saving(real: int, longest: int, count: int, call_tokens: int) -> int:
    """Tokens that one call for a padded batch saves against `count` calls: overheads less padding."""
    return (count - 1) * call_tokens - (longest * count - real)


def drained_in(requests: int, seconds_each: float | None) -> float:
    """Seconds until `requests` are done at the recent pace; a second where nothing is known yet."""
    return 1.0 if seconds_each is None else requests * seconds_each


def pace(recent: float | None, seconds: float, requests: int) -> float:
    """Seconds per request after one more batch: it counts a fifth, so about ten batches are remembered."""
    each = seconds / requests
    return each if recent is None else 0.8 * recent + 0.2 * each

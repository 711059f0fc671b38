"""Which waiting requests form the next batch, and when it starts: decisions, without clock and queue.

Every batch has the oldest request, so none starves: the k-th request of the queue is in the k-th batch at the
latest. The other requests are chosen by length, because padding costs a CPU as much as real tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Limits(NamedTuple):
    max_tokens: int  # of a padded batch: the longest request's tokens times the number of requests
    max_batch: int  # requests
    max_delay: float  # seconds that a request may wait for others while the worker is free
    call_tokens: int  # the fixed cost of a call, in tokens


def starts_in(sizes: Sequence[int], waited: float, limits: Limits) -> float:
    """Seconds until a free worker should start a batch; 0.0 for at once.

    `sizes`: tokens of each waiting request. `waited`: seconds that the oldest request has waited.
    """
    full = len(sizes) >= limits.max_batch or sum(sizes) >= limits.max_tokens
    return 0.0 if full else max(0.0, limits.max_delay - waited)


def next_batch(sizes: Sequence[int], limits: Limits) -> list[int]:
    """Ascending indices of the requests of the next batch. `sizes`: tokens, in order of arrival.

    The batch grows from the oldest request to its neighbours in length. Of the batches on the way, the one
    that saves most against a call for each request wins. Only the oldest, alone, may exceed `max_tokens`.
    """
    first, others = sizes[0], range(1, len(sizes))
    shorter = sorted((i for i in others if sizes[i] < first), key=lambda i: (sizes[i], -i))
    longer = sorted((i for i in others if sizes[i] >= first), key=lambda i: (-sizes[i], -i))
    batch, real, longest = [0], first, first  # the nearest request of each side is its last
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
    """Tokens that a call for a padded batch saves against `count` calls: the calls' costs less padding."""
    return (count - 1) * call_tokens - (longest * count - real)


def drained_in(requests: int, seconds_each: float | None) -> float:
    """Seconds until `requests` are done at the recent pace; one second if the pace is unknown."""
    return 1.0 if seconds_each is None else requests * seconds_each


def pace(recent: float | None, seconds: float, requests: int) -> float:
    """Seconds per request, updated by another batch with a weight of a fifth: about ten batches matter."""
    each = seconds / requests
    return each if recent is None else 0.8 * recent + 0.2 * each

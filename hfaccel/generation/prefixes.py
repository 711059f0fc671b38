"""Beginnings that prompts share: what a slot holds need not be computed again. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

LEAST = 8  # tokens that are worth a copy


class Reuse(NamedTuple):
    """The slot in which a request starts, and the tokens that are copied there (none if it is the source)."""

    slot: int
    source: int
    tokens: int


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:  # lists compare fast
        return most
    low, high = 0, most  # they agree up to low, and not up to high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def choose(prompt: Sequence[int], held: Mapping[int, Sequence[int]], free: Sequence[int]) -> Reuse:
    """Where a prompt starts. `held`: the tokens of each slot. `free`: slots that no request uses, the one
    that was used longest ago first. The last token is computed in any case: it gives the next one."""
    lengths = {slot: shared(prompt[:-1], tokens) for slot, tokens in held.items()}
    source = max(lengths, key=lambda slot: (lengths[slot], slot in free), default=free[0])
    tokens = lengths.get(source, 0)
    if tokens < LEAST:
        empty = next((slot for slot in free if not held.get(slot)), free[0])
        return Reuse(empty, empty, 0)
    others = [slot for slot in free if slot != source]
    if source in free and (not others or 2 * tokens >= len(held[source])):
        return Reuse(source, source, tokens)  # little else is lost
    empty = next((slot for slot in others if not held.get(slot)), others[0])
    return Reuse(empty, source, tokens)


def waits(prompt: Sequence[int], reused: int, coming: Sequence[Sequence[int]]) -> bool:
    """Whether a prompt should start later: another's tokens that this step computes would save it more."""
    return any(shared(prompt[:-1], tokens) >= max(LEAST, 2 * reused) for tokens in coming)

"""Which tokens a decoder's call computes, and which tokens these see, read from the mask of its layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch

from hfaccel.engine.calls.ragged import HIDDEN, Sequences, whole


@dataclass(frozen=True, eq=False)
class Followed:
    """Rows of a (batch x columns) input that follow `past` tokens, which lie in a cache."""

    sequences: Sequences
    begins: torch.Tensor | None = None  # int32: of each sequence the first token that is seen; None: 0
    hides_rows: bool = False  # padding is among the rows, and is not computed


class Wanted(NamedTuple):
    """What a call says besides its mask. `window`: how far tokens see at most, -1 for no limit; the mask has
    to say so too. `unpad`: padding is not computed; otherwise it is, and sees nothing or, with
    `padding_sees_all`, everything evenly."""

    batch: int
    columns: int
    past: int
    window: int = -1
    unpad: bool = False
    padding_sees_all: bool = False


def read_followed(mask: torch.Tensor | None, wanted: Wanted) -> Followed | str:
    """What `mask` says, or why that is more than who comes after whom and padding before the first token.

    `mask`: (batch or 1, 1, columns, past + columns), True or 0 where a token is seen; None where each token
    sees those before it."""
    batch, columns, past, window, *_ = wanted
    if mask is None:
        if past and columns > 1:
            return "there is no mask for several tokens after others"
        return _all_seen(batch, columns)
    total = past + columns
    shape = tuple(mask.shape)
    if len(shape) != 4 or shape[0] not in (1, batch) or shape[1:] != (1, columns, total):
        return f"the attention mask has the shape {shape}"
    visible = mask[:, 0]
    if mask.dtype is not torch.bool:
        visible = visible == 0
        if not bool((visible | (mask[:, 0] <= HIDDEN)).all()):
            return "the attention mask adds to the scores"
    if columns == 1 and bool(visible.all()) and not _limits(window, past):
        return _all_seen(batch, columns)
    return _read(visible, wanted)


@lru_cache(maxsize=64)
def _all_seen(batch: int, columns: int) -> Followed:
    """Each token sees itself and all before it."""
    return Followed(whole(batch, columns))


def _limits(window: int, past: int) -> bool:
    return 0 <= window < past


def seen_by(columns: int, past: int, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The places of keys, and (columns, past + columns) whether a query sees a key."""
    key, query = torch.arange(past + columns), torch.arange(past, past + columns)
    away = query[:, None] - key[None]
    return key, (away >= 0) & ((away <= window) | (window < 0))


def _read(visible: torch.Tensor, wanted: Wanted) -> Followed | str:
    batch, columns, past = wanted.batch, wanted.columns, wanted.past
    begins = visible.any(1).int().argmax(1)  # (batch or 1,)
    key, seen = seen_by(columns, past, wanted.window)
    if not torch.equal(visible, seen[None] & (key >= begins[:, None])[:, None]):
        return "the attention mask hides more than what comes after a token and padding before the first"
    begins = begins.expand(batch)
    hidden = (begins - past).clamp(min=0)
    if int(hidden.max()) >= columns:
        return "a sequence is all padding"
    rows = whole(batch, columns)
    with torch.inference_mode(False):
        if not wanted.unpad:
            evenly = wanted.padding_sees_all and bool(hidden.any())
            whole_rows = replace(rows, window=wanted.window, padding_sees_all=evenly)
            return Followed(whole_rows, begins.int().contiguous())
        first, length = rows.first + hidden.int(), rows.length - hidden.int()
        sequences = Sequences(rows.rows, batch, first, length, window=wanted.window)
        return Followed(sequences, begins.int().contiguous(), bool(hidden.any()))

"""Which tokens a decoder's call computes, and which tokens these see, read from the mask of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from hfaccel.engine.calls.ragged import Sequences, ends_of, visible_of, whole

COMPARED = 1 << 18  # numbers of a mask at once


@dataclass(frozen=True, eq=False)
class Followed:
    """Rows of a (batch x columns) input that follow `past` tokens, which lie in a cache."""

    sequences: Sequences
    # (sequences, 2) of int32: the first token that is seen, and the first behind those; None: all are.
    seen: torch.Tensor | None = None
    hides_rows: bool = False  # padding is among the rows, and is not computed

    def has_padding(self, past: int) -> bool:
        """Whether padding is among the rows of a call after `past` tokens."""
        return self.seen is not None and bool((self.seen[:, 0] > past).any())


def read_followed(
    mask: torch.Tensor | None,
    batch: int,
    columns: int,
    past: int,
    window: int = -1,
    unpad: bool = False,
    places: int = 0,
) -> Followed | str:
    """What `mask` says, or why that is more than who comes after whom and padding around the texts.

    `mask`: (batch or 1, 1, columns, past + columns), True or 0 where a token is seen; None where each token
    sees those before it. `window`: how far tokens see at most, -1 for no limit; the mask has to say so too.
    `unpad`: padding is not computed; otherwise it is, and sees nothing. `places`: keys of the mask, where
    these are more, of a cache with room for others; 0: as many as tokens."""
    if mask is None:
        if places and (columns == 1 or past + columns > places):
            return "there is no mask for a cache with room for other tokens, or with too little"
        if past and columns > 1:
            return "there is no mask for several tokens after others"
        return _all_seen(batch, columns)
    visible = _visible(mask, batch, columns, past + columns, places or past + columns)
    if isinstance(visible, str):
        return visible
    if columns == 1 and bool(visible.all()) and not _limits(window, past):
        return _all_seen(batch, columns)
    return _read(visible, batch, columns, past, window, unpad)


def _visible(mask: torch.Tensor, batch: int, columns: int, total: int, places: int) -> torch.Tensor | str:
    """Which of the tokens each column sees: (batch or 1, columns, total)."""
    shape = tuple(mask.shape)
    if len(shape) != 4 or shape[0] not in (1, batch) or shape[1:] != (1, columns, places):
        return f"the attention mask has the shape {shape}"
    visible = visible_of(mask[:, 0])
    if visible is None:
        return "the attention mask adds to the scores"
    if total > places or bool(visible[..., total:].any()):
        return "the attention mask shows places of the cache that no token fills, or there are too few"
    return visible[..., :total]


def read_spans(mask: torch.Tensor, batch: int, columns: int, length: int) -> torch.Tensor | str | None:
    """(batch, 2) of int32: the first token of each text that all rows see, and the first behind those; None:
    all are. Or why `mask` says more than that.

    `mask`: (batch or 1, 1, columns or 1, length), True or 0 where a token is seen."""
    shape = tuple(mask.shape)
    if (
        len(shape) != 4
        or shape[0] not in (1, batch)
        or shape[1:] not in {(1, columns, length), (1, 1, length)}
    ):
        return f"the encoder's attention mask has the shape {shape}"
    visible = visible_of(mask[:, 0])
    if visible is None:
        return "the encoder's attention mask adds to the scores"
    if bool(visible.all()):
        return None
    first = visible[:, 0]
    if not bool(first.any(1).all()):
        return "a text of the encoder is all padding"
    begins, ends = ends_of(first)
    if not bool((visible == first[:, None]).all()) or not torch.equal(ends - begins, first.sum(1)):
        return "the encoder's attention mask hides more than padding around the texts"
    with torch.inference_mode(False):
        return torch.stack([begins.expand(batch), ends.expand(batch)], 1).int()


@lru_cache(maxsize=64)
def _all_seen(batch: int, columns: int) -> Followed:
    """Each token sees itself and all before it."""
    return Followed(_windowed(whole(batch, columns), -1))


def _windowed(sequences: Sequences, window: int) -> Sequences:
    return Sequences(sequences.rows, sequences.count, sequences.first, sequences.length, window=window)


def _limits(window: int, past: int) -> bool:
    return 0 <= window < past


def seen_by(columns: int, past: int, window: int, keys: int | None = None) -> torch.Tensor:
    """(columns, keys) whether a query sees a key. `keys`: past + columns where nothing is said."""
    query = torch.arange(past, past + columns)
    away = query[:, None] - torch.arange(past + columns if keys is None else keys)
    return (away >= 0) & ((away <= window) | (window < 0))


def _is_causal(
    visible: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor, past: int, window: int
) -> bool:
    """Whether each column sees what is before it, in its window and its text. Some columns are compared at a
    time, because the mask of a long prompt is large."""
    _, columns, keys = visible.shape
    key, step = torch.arange(keys), max(1, COMPARED // keys)
    between = ((key >= begins[:, None]) & (key < ends[:, None]))[:, None]
    for first in range(0, columns, step):
        some = visible[:, first : first + step]
        if not torch.equal(some, seen_by(some.shape[1], past + first, window, keys) & between):
            return False
    return True


def _read(
    visible: torch.Tensor, batch: int, columns: int, past: int, window: int, unpad: bool
) -> Followed | str:
    by_some = visible.any(1)  # (batch or 1, past + columns)
    begins, ends = ends_of(by_some)
    if not _is_causal(visible, begins, ends, past, window):
        return "the attention mask hides more than what comes after a token and padding around the texts"
    hidden = (begins.expand(batch) - past).clamp(min=0)
    if not bool(by_some.any(1).all()):
        return "a sequence is all padding"
    rows = whole(batch, columns)
    with torch.inference_mode(False):
        spans = torch.stack([begins.expand(batch), ends.expand(batch)], 1).int()
        if not unpad:
            return Followed(_windowed(rows, window), spans)
        first, length = rows.first + hidden.int(), rows.length - hidden.int()
        sequences = Sequences(rows.rows, batch, first, length, window=window)
        return Followed(sequences, spans, bool(hidden.any()))

"""Which tokens of a padded batch are real, read from the attention mask that a layer is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch

from hfaccel.engine.calls.last_seen import LastSeen
from hfaccel.engine.kernels import kernels
from hfaccel.native import NativeSequences

HIDDEN = -1e4  # an additive mask hides a token with this value or less: float16's lowest is -65504


@dataclass(frozen=True, eq=False)
class Sequences:
    """Which rows of a (batch x length) input form a sequence: int32 tensors with one number per sequence.

    A sequence has `length` rows from row `first` on. Attention sees `seen` of them, after the first `skipped`
    (None: all). Rows outside of all sequences become zero.
    """

    rows: int
    count: int
    first: torch.Tensor
    length: torch.Tensor
    skipped: torch.Tensor | None = None
    seen: torch.Tensor | None = None
    window: int = -1  # a token sees others at most this far away; -1: all
    causal: bool = False  # a token does not see later ones
    # With equal weights, if padding is computed (DeBERTa). 2: those before it in its window (GPT-Neo)
    padding_sees_all: int = 0

    @cached_property
    def native(self) -> NativeSequences:
        """The kernels' object for these sequences."""
        places = (self.first, self.length, self.skipped, self.seen)
        first, length, skipped, seen = (0 if place is None else place.data_ptr() for place in places)
        return kernels().Sequences(
            self.rows, self.count, first, length, skipped, seen, self.window, self.padding_sees_all
        )


@lru_cache(maxsize=64)
def whole(batch: int, length: int) -> Sequences:
    """Every row is a sequence of `length` tokens."""
    with torch.inference_mode(False):
        first = torch.arange(0, batch * length, length, dtype=torch.int32)
        return Sequences(batch * length, batch, first, torch.full((batch,), length, dtype=torch.int32))


_masks: LastSeen[Sequences | str] = LastSeen()


def read_mask(
    mask: torch.Tensor,
    batch: int,
    length: int,
    window: int = -1,
    unpad: bool = True,
    pairs: bool = False,
    causal: bool = False,
) -> Sequences | str:
    """The sequences that `mask` describes, or the reason why the mask hides something else than padding.

    `mask`: (batch or 1, 1, length or 1, length), True or 0 where a token is seen. `window`: how far a token
    of this layer sees at most; a mask with rows for each token must have the same window. `unpad=False`:
    padding is computed. `pairs`: the mask is 1 where both tokens are real (DeBERTa). `causal`: the mask may
    hide later tokens too.
    """
    return _masks.get(
        mask,
        (batch, length, window, unpad, pairs, causal),
        lambda: (
            _read_pairs(mask, batch, length, unpad)
            if pairs
            else _read(mask, batch, length, window, unpad, causal)
        ),
    )


def _read(
    mask: torch.Tensor, batch: int, length: int, window: int, unpad: bool, causal: bool
) -> Sequences | str:
    shape = tuple(mask.shape)
    if len(shape) != 4 or shape[0] not in (1, batch) or shape[1] != 1 or shape[3] != length:
        return f"the attention mask has the shape {shape}"
    if shape[2] not in (1, length):
        return f"the attention mask has the shape {shape}"
    visible = visible_of(mask)
    if visible is None:
        return "the attention mask adds to the scores"
    real = visible[:, 0, 0] if shape[2] == 1 else visible[:, 0].diagonal(dim1=1, dim2=2)
    window = window if shape[2] > 1 else -1
    if shape[2] > 1 and not _is_seen(visible[:, 0], real, window):
        if not causal or not torch.equal(visible[:, 0], _expected(real, window).tril()):
            return "the attention mask hides more than padding"
        return _causal(_runs(real.expand(batch, length), window, unpad))
    return _runs(real.expand(batch, length), window, unpad)


def visible_of(mask: torch.Tensor) -> torch.Tensor | None:
    """Where `mask` shows a token: True, or 0 of a mask that is added to the scores; None where that mask does
    more than hide."""
    if mask.dtype is torch.bool:
        return mask
    visible = mask == 0
    return visible if bool((visible | (mask <= HIDDEN)).all()) else None


def ends_of(real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row of (rows, tokens): the first token that is True, and the first behind the last one."""
    numbers = real.int()
    return numbers.argmax(1), real.shape[1] - numbers.flip(1).argmax(1)


def _causal(found: Sequences | str) -> Sequences | str:
    if isinstance(found, str):
        return found
    if found.skipped is not None and bool(found.skipped.any()):
        return "padding comes before the tokens, and sees none of them"
    return replace(found, causal=True)


def _read_pairs(mask: torch.Tensor, batch: int, length: int, unpad: bool) -> Sequences | str:
    shape = tuple(mask.shape)
    if shape not in {(batch, 1, length, length), (1, 1, length, length)}:
        return f"the attention mask has the shape {shape}"
    visible = mask[:, 0].bool()
    real = visible.diagonal(dim1=1, dim2=2)
    if not torch.equal(visible, real[:, :, None] & real[:, None, :]):
        return "the attention mask hides more than padding"
    found = _runs(real.expand(batch, length), -1, unpad)
    return found if isinstance(found, str) else replace(found, padding_sees_all=1)


def _is_seen(visible: torch.Tensor, real: torch.Tensor, window: int) -> bool:
    if window < 0 and visible.shape[2] % 8 == 0 and visible.is_contiguous():  # five times faster in words
        words, wanted = (each.contiguous().view(torch.int64) for each in (visible, real))
        return bool((words == wanted[:, None, :]).all())
    return torch.equal(visible, _expected(real, window))


def _expected(real: torch.Tensor, window: int) -> torch.Tensor:
    """(batch, length, length): which token sees which, if only `real` tokens within the window are seen."""
    length = real.shape[1]
    seen = real[:, None, :].expand(-1, length, -1)
    if window < 0:
        return seen
    position = torch.arange(length)
    return seen & ((position[:, None] - position[None, :]).abs() <= window)


def _runs(real: torch.Tensor, window: int, unpad: bool) -> Sequences | str:
    batch, length = real.shape
    counts, (begins, ends) = real.sum(1, dtype=torch.int32), ends_of(real)
    if int(counts.min()) == 0:
        return "a sequence is all padding"
    if not torch.equal(ends - begins, counts.long()):
        return "the attention mask has holes"
    rows = whole(batch, length)
    with torch.inference_mode(False):
        begins, counts = begins.int(), counts.clone()
        if unpad:
            return Sequences(rows.rows, batch, rows.first + begins, counts, window=window)
        return Sequences(rows.rows, batch, rows.first, rows.length, begins, counts, window)

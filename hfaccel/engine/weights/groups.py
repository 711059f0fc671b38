"""Weights in groups of 8 or 4 bits: rounding, and the words in which the kernels read them
(native/kernels/gemm.h).

A row is divided into groups of 64, 32 or 16 inputs (`Kind.group`). Each group has a step and a minimum, and
stands for `step * number + minimum`; both are bfloat16 and lie in one word behind the words of its numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import nn

from hfaccel.engine.kernels import LEVELS, Kind

CHUNK = 1 << 18  # numbers that are rounded at a time: intermediate results stay in the cache
# Parts of a group's range that are tried. With 4 bits it pays to clip the few largest weights, so that all
# others get finer steps; with 8 bits it never does, but rounding a step to bfloat16 may shorten the range.
RANGES = {8: (1.0, 1.006), 4: (0.93, 0.85)}  # by bits
FITS = {8: 0, 4: 2}  # rounds of least squares after that
FINEST = 2.0**-8  # of the largest weight: a group's range counts as this wide at least
TINY = 1e-30


def round_groups(
    values: torch.Tensor,
    kind: Kind,
    table: torch.Tensor | None = None,
    importance: torch.Tensor | None = None,
) -> torch.Tensor:
    """(rows, words) of int32: the (rows, columns) values. `table`: steps and minima that were found before,
    as `table_of` gives them; values that were rounded with them stay as they are. `importance`: (columns,),
    how much the square of an error counts, for example the mean square of the input."""
    columns = values.shape[1]
    groups = -(-columns // kind.group)
    words = torch.empty((len(values), groups, kind.group // kind.numbers + 1), dtype=torch.int32)
    weights = None if importance is None else _grouped(importance.float()[None], kind.group)[0]
    for rows in _chunks(len(values), groups * kind.group):
        numbers = _grouped(values[rows].float(), kind.group)
        scale = _found(numbers, kind, weights) if table is None else _from_table(table[rows])
        words[rows, :, -1] = scale.words
        words[rows, :, :-1] = _to_words(scale.round(numbers, kind), kind)
    return words.flatten(1)


def words_of(numbers: torch.Tensor, steps: torch.Tensor, minima: torch.Tensor, kind: Kind) -> torch.Tensor:
    """(rows, words) of int32: the (rows, columns) whole numbers, of uint8, as they are. `steps`, `minima`:
    (rows, groups), which become bfloat16."""
    columns = numbers.shape[1]
    words = torch.empty((len(numbers), steps.shape[1], kind.group // kind.numbers + 1), dtype=torch.int32)
    scale = _Scale(steps[..., None], minima[..., None])
    words[..., -1] = scale.words
    whole = nn.functional.pad(numbers, (0, -columns % kind.group)).unflatten(1, (-1, kind.group))
    words[..., :-1] = _to_words(whole, kind)
    return words.flatten(1)


def values_of(words: torch.Tensor, kind: Kind, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """The (rows, columns) values of (rows, words)."""
    result = torch.empty((len(words), columns), dtype=dtype)
    table = table_of(words, kind)
    groups = table.shape[1]
    for rows in _chunks(len(words), groups * kind.group):
        scale = _from_table(table[rows])
        numbers = _from_words(words[rows].unflatten(1, (groups, -1))[..., :-1], kind)
        values = torch.addcmul(scale.minimum, numbers, scale.step)
        result[rows] = values.flatten(1)[:, :columns].to(dtype)
    return result


def table_of(words: torch.Tensor, kind: Kind) -> torch.Tensor:
    """(rows, groups) of int32: the steps, and in the upper halves the minima, of (rows, words)."""
    each = kind.group // kind.numbers + 1
    return words[:, each - 1 :: each].contiguous()


@dataclass(frozen=True)
class _Scale:
    """Of groups: (rows, groups, 1) of float32 numbers that are bfloat16."""

    step: torch.Tensor
    minimum: torch.Tensor

    @property
    def words(self) -> torch.Tensor:
        """(rows, groups) of int32."""
        return torch.cat([self.step, self.minimum], -1).bfloat16().view(torch.int32).squeeze(-1)

    def round(self, numbers: torch.Tensor, kind: Kind) -> torch.Tensor:
        """(rows, groups, inputs): whole numbers from 0 on."""
        whole = ((numbers - self.minimum) / self.step).round_().clamp_(0, _most(kind))
        return (
            whole if kind is not Kind.E2M1_GROUPS_OF_32 else _HELD[_PLACES[whole.nan_to_num_().long()].long()]
        )

    def error(self, numbers: torch.Tensor, kind: Kind, weights: torch.Tensor | None) -> torch.Tensor:
        """(rows, groups, 1): the sum of squares."""
        lost = torch.addcmul(self.minimum, self.round(numbers, kind), self.step).sub_(numbers).square_()
        return (lost if weights is None else lost.mul_(weights)).sum(-1, keepdim=True)

    def where(self, chosen: torch.Tensor, other: _Scale) -> _Scale:
        """This one where `chosen`, otherwise the other."""
        return _Scale(
            torch.where(chosen, self.step, other.step), torch.where(chosen, self.minimum, other.minimum)
        )


def _from_table(table: torch.Tensor) -> _Scale:
    halves = table[..., None].contiguous().view(torch.bfloat16).float()
    return _Scale(halves[..., :1], halves[..., 1:])


def _found(numbers: torch.Tensor, kind: Kind, weights: torch.Tensor | None) -> _Scale:
    """Of the scales that are tried, those with the least squared error."""
    lowest, highest = numbers.amin(-1, keepdim=True), numbers.amax(-1, keepdim=True)
    width = highest - lowest
    finest = torch.maximum(lowest.abs(), highest.abs()).mul_(FINEST).clamp_(min=TINY) / _most(kind)

    def scale(step: torch.Tensor, minimum: torch.Tensor) -> _Scale:
        return _Scale(*(part.bfloat16().float() for part in (torch.maximum(step, finest), minimum)))

    def better(best: _Scale, tried: _Scale) -> _Scale:
        fewer = tried.error(numbers, kind, weights) < best.error(numbers, kind, weights)
        return tried.where(fewer, best)

    ranges = (
        scale(width * (part / _most(kind)), lowest + width * ((1 - part) / 2)) for part in RANGES[kind.bits]
    )
    best = reduce(better, ranges)
    for _ in range(FITS[kind.bits]):
        best = better(best, scale(*_fitted(best.round(numbers, kind), numbers, weights)))
    return best


def _fitted(
    rounded: torch.Tensor, numbers: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The step and minimum with which these rounded numbers come closest: least squares."""
    share = (
        torch.full(numbers.shape[-1:], 1 / numbers.shape[-1])
        if weights is None
        else weights / weights.sum(-1, keepdim=True)
    )
    mean_rounded, mean = ((part * share).sum(-1, keepdim=True) for part in (rounded, numbers))
    centred = (rounded - mean_rounded) * share
    variance = (centred * rounded).sum(-1, keepdim=True).clamp_(min=TINY)
    step = (centred * numbers).sum(-1, keepdim=True) / variance
    return step, mean - step * mean_rounded


def _most(kind: Kind) -> int:
    return LEVELS[-1] if kind is Kind.E2M1_GROUPS_OF_32 else (1 << kind.bits) - 1


_HELD = torch.tensor(LEVELS, dtype=torch.float32)
_PLACES = (torch.arange(LEVELS[-1] + 1)[:, None] - torch.tensor(LEVELS)).abs().argmin(1).to(torch.uint8)


def _grouped(values: torch.Tensor, size: int) -> torch.Tensor:
    """(rows, groups, size). The last group is filled with its last value, which widens no range."""
    rows, columns = values.shape
    padding = -columns % size
    if padding:
        values = torch.cat([values, values[:, -1:].expand(rows, padding)], 1)
    return values.reshape(rows, -1, size)


def _to_words(rounded: torch.Tensor, kind: Kind) -> torch.Tensor:
    """(rows, groups, words) of int32. Of eight inputs in 4 bits each, the first four are the lower halves of
    a word's bytes."""
    numbers = rounded.to(torch.uint8)
    if kind is Kind.E2M1_GROUPS_OF_32:
        numbers = _PLACES[numbers.long()]
    if kind.bits == 4:
        halves = numbers.unflatten(-1, (-1, 2, 4))
        numbers = (halves[..., 0, :] | halves[..., 1, :] << 4).flatten(-2)
    return numbers.contiguous().view(torch.int32)


def _from_words(words: torch.Tensor, kind: Kind) -> torch.Tensor:
    """(rows, groups, inputs) of whole numbers."""
    numbers = words.contiguous().view(torch.uint8)
    if kind.bits == 4:
        numbers = numbers.unflatten(-1, (-1, 4))
        numbers = torch.stack([numbers & 15, numbers >> 4], -2).flatten(-3)
    return _HELD[numbers.long()] if kind is Kind.E2M1_GROUPS_OF_32 else numbers


def _chunks(rows: int, numbers: int) -> Iterator[slice]:
    """Rows of so many numbers each, some at a time."""
    some = max(1, CHUNK // numbers)
    return (slice(start, start + some) for start in range(0, rows, some))

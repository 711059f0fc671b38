"""Finds the whole numbers behind a weight that a checkpoint has quantized and a loader has expanded to floats
(GGUF, MXFP4).

The values of each group of 32 or 16 inputs are then `step * number + minimum`, up to the rounding of floats.
This is read off the values, so that neither the file nor its format has to be known, and neither how a loader
has permuted or stacked rows. A few groups tell an ordinary weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hfaccel.engine.kernels import LEVELS, Kind

CHUNK = 1 << 18  # values that are looked at a time: intermediate results stay in the cache
SAMPLED = 16  # rows, of which one group each is looked at first
EXACT = 2.0**-20  # of a group's largest value: how far float32 may have rounded its values
HALF = 2.0**-7  # the same for bfloat16
NEAREST = 0.25  # of a step: the farthest that a value may be from its number
ROUNDED = 2.0**-8  # of a group's largest value: how far bfloat16 rounds values
TINY = 1e-30  # the step of a group of zeros


@dataclass(frozen=True)
class Form:
    """Grids of one form. `counts`: of steps, from zero to the largest value of a symmetric grid, from the
    lowest to the highest of any other, in the order in which they are tried. `levels`: the numbers that there
    are, if not all that have so many bits."""

    kind: Kind
    symmetric: bool
    counts: tuple[int, ...]
    levels: tuple[int, ...] = ()

    @property
    def bits(self) -> int:
        return self.kind.bits

    @property
    def most(self) -> int:
        return self.levels[-1] if self.levels else (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The number that stands for zero in a symmetric grid."""
        return (self.most + 1) // 2

    def rounding(self, dtype: torch.dtype) -> float:
        """How far values may be from their grid. With 8 bits the rounding to bfloat16 is as large as a step:
        only values are found that needed none."""
        return HALF if dtype is torch.bfloat16 and self.bits == 4 else EXACT


FORMS = (
    Form(Kind.INT4_GROUPS_OF_32, True, (*range(8, 0, -1),)),  # Q4_0
    Form(Kind.INT4_GROUPS_OF_32, False, (*range(15, 0, -1),)),  # Q4_1, Q4_K
    Form(Kind.E2M1_GROUPS_OF_32, True, (12, 8, 6, 4, 3, 2, 1), LEVELS),  # MXFP4
    Form(Kind.INT8_GROUPS_OF_32, True, (127, 16, 113, *range(128, 0, -1))),  # Q8_0, Q5_0, IQ4_NL
    Form(Kind.INT8_GROUPS_OF_32, False, (*range(31, 0, -1),)),  # Q5_1, Q5_K
    Form(Kind.INT8_GROUPS_OF_16, True, (*range(32, 0, -1),)),  # Q6_K
    Form(Kind.INT8_GROUPS_OF_16, False, (3, 2, 1)),  # Q2_K
)


@dataclass(frozen=True)
class Grid:
    """`kind`: the smallest whose numbers are those of the weight. `table`: (rows, groups), the steps and
    minima as `groups.table_of` gives them."""

    kind: Kind
    table: torch.Tensor


def find_grid(values: torch.Tensor, bits: int) -> Grid | None:
    """The grid, of numbers with at most so many bits, on which the (rows, columns) values lie; None for
    none."""
    for form in forms_of_some(values, bits):
        table = _table(values, form)
        if table is not None:
            return Grid(form.kind, table)
    return None


def forms_of_some(values: torch.Tensor, bits: int) -> Iterator[Form]:
    """The forms that fit a few groups of the values."""
    for form in FORMS:
        numbers = _some_groups(values, form.kind.group)
        counts, rounding = torch.tensor(form.counts)[:, None, None], form.rounding(values.dtype)
        if form.bits > bits or not len(numbers):
            continue
        if _Origin.of(numbers, form).is_counted(counts, rounding).any(0).all():
            yield form


def _some_groups(values: torch.Tensor, size: int) -> torch.Tensor:
    """(groups, size), of rows far from each other; none where rows are not whole groups."""
    rows, columns = values.shape
    if columns % size or not columns:
        return torch.empty(0, size)
    taken = torch.linspace(0, rows - 1, min(rows, SAMPLED)).long()
    inputs = (torch.arange(len(taken)) % (columns // size) * size)[:, None] + torch.arange(size)
    return values.detach()[taken[:, None], inputs].float()


@dataclass(frozen=True)
class _Origin:
    """Groups of values, counted from zero or from their lowest."""

    values: torch.Tensor  # (groups, inputs), from the origin
    width: torch.Tensor  # (groups, 1): the farthest from the origin
    largest: torch.Tensor  # (groups, 1): the farthest from zero

    @classmethod
    def of(cls, numbers: torch.Tensor, form: Form) -> _Origin:
        lowest, highest = numbers.amin(-1, keepdim=True), numbers.amax(-1, keepdim=True)
        largest = torch.maximum(-lowest, highest)
        if form.symmetric:
            return cls(numbers, largest.clamp(min=TINY), largest)
        return cls(numbers - lowest, (highest - lowest).clamp_(min=TINY), largest)

    def some(self, which: torch.Tensor) -> _Origin:
        return _Origin(self.values[which], self.width[which], self.largest[which])

    def counted(self, count: int) -> torch.Tensor:
        """The nearest whole numbers, from 0 or -count to count."""
        return (self.values * (count / self.width)).round_()

    def is_counted(self, count: int | torch.Tensor, rounding: float) -> torch.Tensor:
        """(groups,): whether all values are near whole numbers of steps, of which the width has `count`."""
        per_value = count / self.width
        steps = self.values * per_value
        away = steps.sub_(steps.round()).abs_().amax(-1)
        allowed = (self.largest * per_value).squeeze(-1) * rounding
        return (away == 0) | ((away <= allowed) & (allowed <= NEAREST))


def _table(values: torch.Tensor, form: Form) -> torch.Tensor | None:
    """The (rows, groups) table of the form; None if it does not fit all groups."""
    (rows, columns), size = values.shape, form.kind.group
    table = torch.empty((rows, columns // size), dtype=torch.int32)
    some = max(1, CHUNK // columns)
    for start in range(0, rows, some):
        numbers = values.detach()[start : start + some].float().reshape(-1, size)
        scales = _fitted(numbers, form, form.rounding(values.dtype))
        if scales is None:
            return None
        table[start : start + some] = scales.bfloat16().view(torch.int32).view(-1, table.shape[1])
    return table


def _fitted(numbers: torch.Tensor, form: Form, rounding: float) -> torch.Tensor | None:
    """Steps and minima, (groups, 2) of bfloat16 numbers; None if some group has none."""
    origin, left = _Origin.of(numbers, form), torch.arange(len(numbers))
    scales = torch.empty((len(numbers), 2))
    for count in form.counts:
        rest = origin.some(left)
        near = rest.is_counted(count, rounding).nonzero().squeeze(1)
        if not len(near):
            continue
        whole = _smallest(rest.some(near).counted(count))
        scale, kept = (_symmetric if form.symmetric else _from_lowest)(numbers[left[near]], whole, form)
        near = near[kept]
        scales[left[near]] = scale[kept]
        left = left[~torch.zeros(len(left), dtype=torch.bool).index_fill_(0, near, True)]
        if not len(left):
            return scales
    return None


def _smallest(whole: torch.Tensor) -> torch.Tensor:
    """The numbers of each group divided by what divides them all: steps are then those of the checkpoint, and
    not parts of them, which bfloat16 would round."""
    divisor = whole.int().abs()
    while divisor.shape[1] > 1:
        divisor = torch.gcd(*divisor.chunk(2, 1))
    return whole / divisor.clamp_(min=1)


def _symmetric(values: torch.Tensor, whole: torch.Tensor, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps and minima, (groups, 2); and whether they keep the numbers. A grid has one more number on one
    side of zero: steps are negative where that is the positive side."""
    squares = whole.square().sum(-1, keepdim=True).clamp_(min=1)
    step = (whole * values).sum(-1, keepdim=True) / squares
    step = torch.where(step == 0, TINY, step)
    turned = whole.amax(-1, keepdim=True) == form.middle
    step, whole = torch.where(turned, -step, step), torch.where(turned, -whole, whole)
    step = step.bfloat16().float()
    return _checked(values, whole + form.middle, step, step * -form.middle, form)


def _from_lowest(values: torch.Tensor, whole: torch.Tensor, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """The same. What rounding changes in a step, the minimum makes up for on average."""
    mean, mean_whole = values.mean(-1, keepdim=True), whole.mean(-1, keepdim=True)
    away = whole - mean_whole
    variance = away.square().sum(-1, keepdim=True)
    equal = variance == 0
    step = (away * values).sum(-1, keepdim=True) / torch.where(equal, 1, variance)
    step = torch.where(equal, mean.abs().clamp(min=TINY), step).bfloat16().float()
    return _checked(values, whole, step, (mean - step * mean_whole).bfloat16().float(), form)


def _checked(
    values: torch.Tensor, whole: torch.Tensor, step: torch.Tensor, minimum: torch.Tensor, form: Form
) -> tuple[torch.Tensor, torch.Tensor]:
    """Beside a minimum that is hundreds of steps away from zero, numbers make up for the rounding of the
    minimum."""
    numbers = ((values - minimum) / step).round_().clamp_(0, form.most)
    away = torch.addcmul(minimum, numbers, step).sub_(values).abs_().amax(-1)
    kept = (numbers == whole).all(-1) | (away <= values.abs().amax(-1) * ROUNDED)
    if form.levels:
        kept &= torch.isin(numbers, torch.tensor(form.levels)).all(-1)
    return torch.cat([step, minimum], -1), kept

"""A weight as a quantized checkpoint has it, and the same whole numbers as the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hfaccel.engine.kernels import GROUP, SMALL_GROUP, Kind
from hfaccel.engine.weights.groups import words_of
from hfaccel.engine.weights.layout import Layout, write_words


class Unreadable(ValueError):
    """Why the kernels cannot compute a quantized layer from its own numbers."""


@dataclass(frozen=True)
class Integers:
    """`steps * (numbers - zeros)`, with one step and one zero for `group` inputs of a row."""

    numbers: torch.Tensor  # (rows, columns) of uint8
    steps: torch.Tensor  # (rows, groups), of floats
    zeros: torch.Tensor  # (rows, groups), or one number for all
    bits: int
    group: int

    @property
    def kind(self) -> Kind:
        if self.group % GROUP and self.group != self.numbers.shape[1]:
            return Kind.INT4_GROUPS_OF_32 if self.bits == 4 else Kind.INT8_GROUPS_OF_32
        return Kind.INT4_WEIGHT_ONLY if self.bits == 4 else Kind.INT8_WEIGHT_ONLY

    def write(self, layout: Layout, memory: torch.Tensor) -> None:
        """Write the numbers as they are into memory of this layout; steps become bfloat16."""
        rounded = self.steps.bfloat16().float()  # a symmetric weight's minimum is then an exact multiple
        steps, minima = (self._repeated(each) for each in (rounded, -rounded * self.zeros.float()))
        write_words(layout, words_of(self.numbers, steps, minima, layout.kind), memory)

    def _repeated(self, of_groups: torch.Tensor) -> torch.Tensor:
        """For the kernels' groups, which are parts of the checkpoint's."""
        columns, size = self.numbers.shape[1], self.kind.group
        groups = -(-columns // size)
        times = groups if self.group >= columns else self.group // size
        return of_groups.repeat_interleave(times, 1)[:, :groups]


@dataclass(frozen=True)
class Rows:
    """`steps * numbers`, with one step for a row, for activations that are rounded with one scale for a
    token: the kernels' int8."""

    numbers: torch.Tensor  # (rows, columns) of int8
    steps: torch.Tensor  # (rows,) of floats

    kind = Kind.INT8

    def write(self, layout: Layout, memory: torch.Tensor) -> None:
        """Write numbers and steps as they are into memory of this layout."""
        inputs, weights = layout.exact(memory)
        inputs.fill_(-1)
        weights.zero_()
        layout.factors(memory).fill_(1)
        table = layout.numbers_of_rows(memory)
        table[0] = self.steps.float()
        table[1] = self.numbers.sum(1, dtype=torch.int32) * table[0]
        padding = layout.words * layout.kind.numbers - layout.columns
        words = nn.functional.pad(self.numbers, (0, padding)).contiguous().view(torch.int32)
        write_words(layout, words, memory)


def integers(
    numbers: torch.Tensor, steps: torch.Tensor, zeros: torch.Tensor, *, bits: int, group: int
) -> Integers:
    """Checked. Raises Unreadable where groups or shapes are not those that the kernels know."""
    rows, columns = numbers.shape
    group = columns if group <= 0 or group >= columns else group
    if bits not in (4, 8):
        raise Unreadable(f"its weight has {bits} bits; the kernels read 4 and 8")
    if group % SMALL_GROUP and group != columns:
        raise Unreadable(
            f"its groups have {group} inputs; the kernels read multiples of {SMALL_GROUP}, or whole rows"
        )
    wanted = (rows, -(-columns // group))
    if steps.shape != wanted or zeros.shape not in ((), wanted):
        raise Unreadable(
            f"for {rows} x {columns} weights in groups of {group} its scales and zeros must be of the shape "
            f"{wanted}, but are of {tuple(steps.shape)} and {tuple(zeros.shape)}"
        )
    return Integers(numbers, steps, zeros, bits, group)


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """(rows, words) of int32 -> (rows, numbers) of uint8, the lowest bits first."""
    numbers = words.contiguous().view(torch.uint8)
    if bits == 4:
        numbers = torch.stack([numbers & 15, numbers >> 4], -1).flatten(-2)
    return numbers

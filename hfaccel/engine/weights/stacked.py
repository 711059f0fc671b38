"""Packed parameters that hold the weights of all experts of a layer: three dimensions, an expert each.

Each expert's weight is packed by itself, one behind the other, so that the kernels read only what they need.
Where gate and up are one weight, its halves are two matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import ClassVar

import torch

from hfaccel.engine.kernels import Kind
from hfaccel.engine.weights.layout import Layout, group_scales, laid_out_anew, read, write
from hfaccel.engine.weights.packed import PackedWeight, TransposedWeight
from hfaccel.engine.weights.sent import reduce_packed
from hfaccel.memory import padded
from hfaccel.native import NativeMatrix


@dataclass(frozen=True)
class Stack(Layout):
    """Where the memory keeps `count` times `halves` matrices of (rows, columns)."""

    count: int = 1
    halves: int = 1

    @property
    def each(self) -> Layout:
        return Layout(self.kind, self.rows, self.columns, self.panel)

    @property
    def step(self) -> int:
        """Bytes from expert to expert."""
        return self.halves * padded(self.each.nbytes)

    @property
    def nbytes(self) -> int:
        return self.count * self.step

    def part(self, memory: torch.Tensor, number: int) -> torch.Tensor:
        """The bytes of one matrix: `halves` of the first expert, then those of the second."""
        start = number * padded(self.each.nbytes)
        return memory[start : start + self.each.nbytes]

    def first(self, memory: torch.Tensor, half: int) -> NativeMatrix:
        """The native matrix of the first expert."""
        return self.each.matrix(self.part(memory, half), None, slice(0, self.rows))


class StackedWeight(PackedWeight):
    """An (experts, out_features, in_features) parameter."""

    packing: Stack
    halves: ClassVar[int] = 1
    alternate: ClassVar[bool] = False  # whether rows of both halves lie in turn, or half behind half
    transposed: ClassVar[bool] = False  # (experts, in_features, out_features)

    @classmethod
    def layout_of(cls, kind: Kind, shape: Sequence[int]) -> Stack:
        count, *sizes = shape
        rows, columns = reversed(sizes) if cls.transposed else sizes
        return Stack(kind, rows // cls.halves, columns, count=count, halves=cls.halves)

    @classmethod
    def matrices(cls, values: torch.Tensor) -> Iterator[torch.Tensor]:
        """Views of all matrices, (out_features, in_features), in the order of `Stack.part`."""
        for whole in values.transpose(1, 2) if cls.transposed else values:
            size = len(whole) // cls.halves
            for half in range(cls.halves):
                yield whole[half :: cls.halves] if cls.alternate else whole[half * size : (half + 1) * size]

    @classmethod
    def fill(
        cls,
        layout: Layout,
        memory: torch.Tensor,
        values: torch.Tensor,
        factors: torch.Tensor | None,
        importance: torch.Tensor | None = None,
    ) -> None:
        assert isinstance(layout, Stack)
        for number, matrix in enumerate(cls.matrices(values)):
            of_one = None if factors is None else factors[number]
            PackedWeight.fill(layout.each, layout.part(memory, number), matrix, of_one, importance)

    @classmethod
    def held(cls, layout: Layout, memory: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        assert isinstance(layout, Stack)
        sizes = layout.halves * layout.rows, layout.columns
        result = torch.empty((layout.count, *(reversed(sizes) if cls.transposed else sizes)), dtype=dtype)
        for number, matrix in enumerate(cls.matrices(result)):
            matrix.copy_(read(layout.each, layout.part(memory, number), dtype))
        return result

    @staticmethod
    def laid_out_anew(layout: Layout, memory: torch.Tensor) -> torch.Tensor:
        assert isinstance(layout, Stack)
        here = Stack(layout.kind, layout.rows, layout.columns, count=layout.count, halves=layout.halves)
        result = torch.zeros(here.nbytes, dtype=torch.uint8)
        for number in range(layout.count * layout.halves):
            here.part(result, number).copy_(laid_out_anew(layout.each, layout.part(memory, number)))
        return result

    def overwrite(self, dense: torch.Tensor) -> None:
        with torch.no_grad():
            for number, matrix in enumerate(self.matrices(dense)):
                write(self.packing.each, matrix, self.packing.part(self.memory, number))
        if not self.memory.is_inference():
            torch.autograd.graph.increment_version(self.memory)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.embedding(self.unpack(), ids)  # raises torch's own error

    def _factors(self) -> torch.Tensor | None:
        layout = self.packing
        parts = [layout.part(self.memory, number) for number in range(layout.count * layout.halves)]
        if self.kind.is_grouped:
            return torch.stack([group_scales(layout.each, part) for part in parts])
        if self.kind is Kind.INT8:
            return torch.stack([layout.each.factors(part) for part in parts])
        return None


class GatedStack(StackedWeight):
    """Gate and up as one weight, (experts, out_features of gate and then of up, in_features)."""

    halves = 2


class AlternateStack(GatedStack):
    """The same with a row of gate and one of up in turn."""

    alternate = True


class TransposedStack(StackedWeight):
    """(experts, in_features, out_features)"""

    transposed = True


class TransposedGatedStack(GatedStack):
    """(experts, in_features, out_features of gate and then of up)"""

    transposed = True


class TransposedAlternateStack(AlternateStack):
    """(experts, in_features, out_features of gate and of up in turn), as GPT-OSS has."""

    transposed = True


STACKS = (
    *(StackedWeight, GatedStack, AlternateStack),
    *(TransposedStack, TransposedGatedStack, TransposedAlternateStack),
)
FORMS: dict[str, type[PackedWeight]] = {
    cls.__name__: cls for cls in (PackedWeight, TransposedWeight, *STACKS)
}

for _class in STACKS:
    ForkingPickler.register(_class, reduce_packed)


def stack_class(*, halves: int, alternate: bool, transposed: bool) -> type[StackedWeight]:
    """The class of experts' weights of this form."""
    wanted = halves, alternate and halves > 1, transposed
    return next(cls for cls in STACKS if (cls.halves, cls.alternate, cls.transposed) == wanted)

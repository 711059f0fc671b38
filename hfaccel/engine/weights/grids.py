"""Which weights of a model lie on a grid, and the kinds that keep their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import torch

from hfaccel.engine.kernels import Kind
from hfaccel.engine.weights.grid import find_grid
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.engine.weights.stacked import StackedWeight

BITS = 8  # of the numbers that the kernels read, at most


@dataclass(frozen=True)
class Grids:
    """`kinds`: of weights that are packed in another kind than the one asked for. `numbers`: those of them
    that keep the numbers of their grid."""

    kinds: Mapping[torch.Tensor, Kind]
    numbers: Set[torch.Tensor]

    def kind(self, weight: torch.Tensor, wanted: Kind) -> Kind:
        return self.kinds.get(weight, wanted)

    def reason(self, weight: torch.Tensor, kind: Kind) -> str:
        """The report's line about a weight that is packed in this kind."""
        packed = f"packed in {kind.label}"
        if weight in self.numbers:
            return f"{packed}, with the checkpoint's own numbers"
        if self.numbers and kind.is_grouped:
            return (
                f"{packed}, rounded: its values are no numbers of {kind.bits} bits with a scale for a group"
            )
        return packed


def find_grids(
    weights: Mapping[torch.Tensor, type[PackedWeight]],
    together: Iterable[Sequence[torch.Tensor]],
    wanted: Kind | None,
) -> Grids:
    """Of weights that are to be packed as `wanted`, those that lie on a grid of at most as many bits. None:
    as many as the kernels read, and no weight is rounded. `together`: weights that the kernels want to be of
    one kind."""
    bits = BITS if wanted is None else wanted.bits
    found = {weight: kind for weight, cls in weights.items() if (kind := _kind(weight, cls, bits))}
    kinds = dict(found)
    for some in together:
        of_some = {found.get(weight, wanted) for weight in some}
        if len(of_some) < 2 or not all(weight in weights for weight in some):
            continue
        if None in of_some:
            kinds = {weight: kind for weight, kind in kinds.items() if weight not in set(some)}
        else:
            kinds.update(dict.fromkeys(some, _widest(filter(None, of_some))))
    return Grids(kinds, found.keys() & kinds.keys())


def _kind(weight: torch.Tensor, cls: type[PackedWeight], bits: int) -> Kind | None:
    """The kind that keeps the numbers of the weight; None if some part of it lies on no grid."""
    kinds = set()
    for matrix in _matrices(weight, cls):
        grid = find_grid(matrix, bits)
        if grid is None:
            return None
        kinds.add(grid.kind)
    return _widest(kinds)


def _matrices(weight: torch.Tensor, cls: type[PackedWeight]) -> Iterator[torch.Tensor]:
    """(out_features, in_features) each."""
    values = weight.unpack() if isinstance(weight, PackedWeight) else weight.detach()
    return cls.matrices(values) if issubclass(cls, StackedWeight) else iter([cls.turn(values)])


def _widest(kinds: Iterable[Kind]) -> Kind:
    """The smallest that has the numbers of all of these."""
    kinds = set(kinds)
    if Kind.INT8_GROUPS_OF_16 in kinds:
        return Kind.INT8_GROUPS_OF_16
    if kinds == {Kind.E2M1_GROUPS_OF_32}:
        return Kind.E2M1_GROUPS_OF_32
    four = all(kind in (Kind.INT4_WEIGHT_ONLY, Kind.INT4_GROUPS_OF_32) for kind in kinds)
    return Kind.INT4_GROUPS_OF_32 if four else Kind.INT8_GROUPS_OF_32

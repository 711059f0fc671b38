"""Layers of transformers' cache with an encoder's keys and values, the same for all beams of a text.

Beam search reorders the whole cache for each token. Such a layer copies nothing where rows that change places
are equal.
"""

from __future__ import annotations

from functools import cache
from typing import Any
from weakref import ref

import torch

from hfaccel.engine.layers.roomed import as_ordinary
from hfaccel.replacement import PREFIX
from hfaccel.upstream.of_transformers import cache_classes

ALIKE = PREFIX + "alike"  # attribute of such a layer


class Alike:
    """Which rows of an encoder's keys and values are equal: those with the same number."""

    def __init__(self, numbers: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.numbers = numbers
        self.tensors = ref(keys), ref(values)  # they may go before the layer does
        self.versions = [keys._version, values._version]

    def keeps(self, layer: Any, order: torch.Tensor) -> bool:
        """Whether the layer shows the same in this order."""
        shows = layer.keys is self.tensors[0]() and layer.values is self.tensors[1]()
        same = shows and [layer.keys._version, layer.values._version] == self.versions
        return same and self.numbers.index_select(0, order).equal(self.numbers)


def numbers_of(rows: torch.Tensor) -> torch.Tensor:
    """(rows,): a number for each row, the same for equal ones that follow one another."""
    differs = (rows[1:] != rows[:-1]).flatten(1).any(1)
    return torch.cat([differs.new_zeros(1, dtype=torch.long), differs.cumsum(0)])


@cache
def _class() -> type[Any]:
    stock: Any = cache_classes()[1]

    class Repeating(stock):  # type: ignore[misc]  # which class that is shows at run time
        hfaccel_stock = stock

        def reorder_cache(self, beam_idx: torch.Tensor) -> None:
            alike: Alike = self.__dict__[ALIKE]
            if not alike.keeps(self, beam_idx):
                super().reorder_cache(beam_idx)

        def __reduce__(self) -> tuple[object, ...]:
            return as_ordinary(self)

    Repeating.__name__ = Repeating.__qualname__ = stock.__name__
    return Repeating


def repeat(layer: Any, numbers: torch.Tensor) -> None:
    """From now on the layer reorders itself so. `numbers`: of its texts, the same for equal ones."""
    layer.__class__ = _class()
    layer.__dict__[ALIKE] = Alike(numbers, layer.keys, layer.values)

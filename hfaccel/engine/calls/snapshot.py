"""A fast check that many things are unchanged, made at every call of a model."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from operator import is_
from typing import Any, TypeVar

import torch
from torch import nn

from hfaccel import native

A = TypeVar("A")
B = TypeVar("B")

Table = dict[str, Any]  # of attributes, parameters, buffers or modules
# A table, a name in it, and the object that it holds there (None: none).
Held = tuple[Table, str, object]
# Address, and the version if a change of the values matters too (-1: it does not).
Place = tuple[int, int]


class InPython:
    """Stands in for hfaccel._snapshot if that was not built. Some 30 nanoseconds for each object, which is
    several times slower."""

    @staticmethod
    def items_are(tables: tuple[Table, ...], names: tuple[str, ...], values: tuple[object, ...]) -> bool:
        return all(map(is_, map(dict.get, tables, names), values))

    @staticmethod
    def attributes_are(
        owners: tuple[object, ...], names: tuple[str, ...], values: tuple[object, ...]
    ) -> bool:
        return all(map(is_, map(getattr, owners, names, repeat(None)), values))

    @staticmethod
    def types_are(objects: tuple[object, ...], types: tuple[type, ...]) -> bool:
        return all(map(is_, map(type, objects), types))

    @staticmethod
    def sizes_are(tables: tuple[dict[Any, Any], ...], sizes: tuple[int, ...]) -> bool:
        return tuple(map(len, tables)) == sizes


comparison: native.Comparison = native.comparison or InPython()


class Snapshot:
    """The contents of some tables, the registered hooks, and the addresses of some vectors."""

    def __init__(
        self,
        held: Iterable[Held],
        hooks: Iterable[dict[int, Any]],
        vectors: Iterable[torch.Tensor],
        modules: Iterable[nn.Module] = (),
    ) -> None:
        """`hooks`: tables of hooks; torch uses each key once. `modules`: their classes and numbers of
        attributes are kept."""
        self._items = columns(held)
        modules, hooks = tuple(modules), tuple(hooks)
        self._types = modules, tuple(map(type, modules))
        sized: tuple[dict[Any, Any], ...] = (*map(vars, modules), *(each for each in hooks if not each))
        self._sizes = sized, tuple(map(len, sized))
        self._hooked = [(table, tuple(table)) for table in hooks if table]
        self._vectors = list(vectors)
        self._addresses = [vector.data_ptr() for vector in self._vectors]
        self._copied = [vector for vector in self._vectors if place(vector)[1] >= 0]
        self._versions = [vector._version for vector in self._copied]

    def holds(self) -> bool:
        """Whether nothing has changed."""
        return (
            comparison.items_are(*self._items)
            and comparison.sizes_are(*self._sizes)
            and comparison.types_are(*self._types)
            and all(tuple(table) == numbers for table, numbers in self._hooked)
            and list(map(torch.Tensor.data_ptr, self._vectors)) == self._addresses
            and [vector._version for vector in self._copied] == self._versions
        )


def columns(rows: Iterable[tuple[A, str, B]]) -> tuple[tuple[A, ...], tuple[str, ...], tuple[B, ...]]:
    """The columns of some rows, as a comparison takes them."""
    first, second, third = zip(*rows, strict=True) if (rows := list(rows)) else ((), (), ())
    return first, second, third


def place(vector: torch.Tensor | None) -> Place:
    """The place of a vector, which the kernels read where it lies if it is float32, otherwise from a copy."""
    if vector is None:
        return 0, -1
    watched = vector.dtype is not torch.float32 and not vector.is_inference()
    return vector.data_ptr(), vector._version if watched else -1

"""A layer of transformers' cache whose keys and values are 8-bit numbers.

Each head's key or value of a token is a row of signed bytes, and behind them the float with which they are
multiplied. A program that reads the layer gets floats, made for it. A program that writes to the layer makes
it an ordinary one again, which the next call of the kernels rounds to 8 bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from hfaccel.replacement import PREFIX
from hfaccel.upstream.of_transformers import cache_classes

ROWS = PREFIX + "rows"  # attribute of such a layer: its keys and its values, as bytes
FACTOR = 4  # bytes of the float behind a row


def row_size(size: int, dtype: torch.dtype) -> int:
    """Numbers of a row with a head of this size, in a cache of this type."""
    return size + FACTOR if dtype is torch.int8 else size


def narrowed(numbers: torch.Tensor) -> torch.Tensor:
    """(..., size) floats as (..., size + FACTOR) int8."""
    numbers = numbers.float()
    factor = numbers.abs().amax(-1, keepdim=True) / 127
    rounded = (numbers / factor.where(factor > 0, 1.0)).round().to(torch.int8)
    return torch.cat([rounded, factor.view(torch.int8)], -1)


def widened(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The floats that such rows stand for."""
    factor = rows[..., -FACTOR:].contiguous().view(torch.float32)
    return (rows[..., :-FACTOR] * factor).to(dtype)


def _in_bytes(stock: Any) -> type[Any]:
    """The class of a cache's layer, in bytes."""

    class InBytes(stock):  # type: ignore[misc]  # which class that is shows at run time
        """An object of the one class may become one of the other."""

        @property
        def keys(self) -> torch.Tensor:
            return widened(held(self)[0], self.dtype)

        @keys.setter
        def keys(self, keys: torch.Tensor) -> None:
            _leave(self)
            self.keys = keys

        @property
        def values(self) -> torch.Tensor:
            return widened(held(self)[1], self.dtype)

        @values.setter
        def values(self, values: torch.Tensor) -> None:
            _leave(self)
            self.values = values

        def get_seq_length(self) -> int:
            length = super().get_seq_length() if self.is_sliding else held(self)[0].shape[-2]
            return int(length)

        def reorder_cache(self, beam_idx: torch.Tensor) -> None:
            self.__dict__[ROWS] = tuple([rows.index_select(0, beam_idx) for rows in held(self)])

        def __reduce__(self) -> tuple[object, ...]:
            return _empty, (self.is_sliding,), self.__dict__

    return InBytes


@cache
def _classes() -> tuple[type[Any], type[Any]]:
    """The layers in bytes: of all tokens, of those in a window."""
    _, plain, sliding = cache_classes()
    return _in_bytes(plain), _in_bytes(sliding)


def _empty(is_sliding: bool) -> Any:
    return object.__new__(_classes()[is_sliding])


def is_in_bytes(layer: Any) -> bool:
    return ROWS in layer.__dict__


def stock_class(layer: Any) -> type[Any]:
    """The layer's class, of one in bytes or one that reorders itself that of transformers."""
    if is_in_bytes(layer):
        return cache_classes()[1 + layer.is_sliding]
    stock: type[Any] = getattr(type(layer), "hfaccel_stock", type(layer))
    return stock


def held(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The tensors that a cache's layer holds: those of a layer in bytes are bytes."""
    if is_in_bytes(layer):
        rows: tuple[torch.Tensor, torch.Tensor] = layer.__dict__[ROWS]
        return rows
    return layer.keys, layer.values


def hold(layer: Any, keys: torch.Tensor, values: torch.Tensor) -> None:
    """From now on the layer holds these, which are floats or bytes."""
    if keys.dtype is not torch.int8:
        layer.keys, layer.values = keys, values
        return
    if not is_in_bytes(layer):
        for name in ("keys", "values"):
            layer.__dict__.pop(name, None)
        layer.__class__ = _classes()[layer.is_sliding]
    layer.__dict__[ROWS] = keys, values


def _leave(layer: Any) -> None:
    rows, stock = held(layer), stock_class(layer)
    del layer.__dict__[ROWS]
    layer.__class__ = stock
    layer.keys, layer.values = (widened(each, layer.dtype) for each in rows)

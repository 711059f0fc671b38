"""Layers of transformers' static cache: the kernels write behind the tokens that they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hfaccel.engine.kernels import NUMBERS
from hfaccel.engine.layers.roomed import Numbers
from hfaccel.upstream.of_transformers import static_classes


def is_static(cache: Any) -> bool:
    return type(cache) is static_classes()[0]


class StaticRooms:
    """Where the keys and values of some layers and one call go; the layers' tensors are of one shape."""

    def __init__(self, layers: Sequence[Any], past: int, columns: int) -> None:
        self.layers, self.past, self.columns = layers, past, columns

    @property
    def strides(self) -> tuple[int, int, int]:
        """From one sequence, head and token to the next, in numbers."""
        batch, head, token, _ = self.layers[0].keys.stride()
        return batch, head, token

    @property
    def number(self) -> int:
        return NUMBERS[self.layers[0].keys.dtype]

    def addresses(self) -> tuple[int, ...]:
        """Of each layer's keys and values."""
        return tuple([half.data_ptr() for layer in self.layers for half in (layer.keys, layer.values)])

    def clear(self) -> None:
        """What padding leaves unwritten is 0 already."""

    def keep(self) -> None:
        """The tokens of the call are in the cache."""
        for layer in self.layers:
            layer.cumulative_length.add_(self.columns)


def problem(cache: Any, index: int, numbers: Numbers) -> str:
    """As hfaccel.engine.layers.caches.cache_problem."""
    layer = cache.layers[index]
    if cache.offloading:
        return "the cache is offloaded"
    if type(layer) is not static_classes()[1]:
        return f"the cache's layer is a {type(layer).__name__}"
    if numbers.stored is torch.int8:
        return "a static cache is not kept in 8 bits"
    dtype = layer.keys.dtype if layer.is_initialized else numbers.shown
    if dtype not in (numbers.stored, torch.bfloat16):
        return f"the cache is in {dtype}"
    if layer.is_initialized and not _is_plain(layer.keys, layer.values):
        return "the cache's tensors are not as transformers makes them"
    return ""


def _is_plain(keys: torch.Tensor, values: torch.Tensor) -> bool:
    alike = (keys.dtype, keys.shape) == (values.dtype, values.shape)
    return alike and keys.is_contiguous() and values.is_contiguous()


def tokens_in(cache: Any, index: int) -> int:
    """How many tokens the cache's layer holds."""
    layer = cache.layers[index]
    return int(layer.cumulative_length) if layer.is_initialized else 0


def _kind(layer: Any) -> tuple[object, ...]:
    if not layer.is_initialized:
        return layer.max_cache_len, 0
    return layer.max_cache_len, int(layer.cumulative_length), layer.keys.dtype, layer.keys.stride()


def make_rooms(
    cache: Any, indices: Sequence[int], shape: tuple[int, int, int, int], numbers: Numbers
) -> StaticRooms:
    """As hfaccel.engine.layers.caches.make_rooms. Layers without memory get theirs, as stock makes it."""
    batch, heads, columns, size = shape
    layers = [cache.layers[index] for index in indices]
    like = torch.empty((batch, heads, 0, size), dtype=numbers.shown)
    for layer in layers:
        if not layer.is_initialized:
            layer.lazy_initialization(like, like)
        if layer.keys.shape != (batch, heads, layer.max_cache_len, size):
            raise ValueError(f"a cache must hold keys of {like.shape}, but has {layer.keys.shape}")
    return StaticRooms(layers, tokens_in(cache, indices[0]), columns)


def together_problem(cache: Any, indices: Sequence[int], numbers: Numbers) -> str:
    """As hfaccel.engine.layers.caches.together_problem."""
    alike = {_kind(cache.layers[index]) for index in indices}
    if len(alike) > 1:
        return "the layers of the cache differ"
    return next(filter(None, (problem(cache, index, numbers) for index in indices)), "")

"""transformers' caches in which the kernels keep keys and values: the one that grows, and the static one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hfaccel.engine.layers import rooms, static_rooms
from hfaccel.engine.layers.roomed import Numbers
from hfaccel.engine.layers.rooms import Rooms
from hfaccel.engine.layers.static_rooms import StaticRooms, is_static


def cache_problem(cache: Any, index: int, numbers: Numbers) -> str:
    """Why the kernels cannot use this cache for the layer of this index; "" where they can. `numbers`: in
    which the layer would keep keys and values; attention in float32 takes them in bfloat16, too."""
    return static_rooms.problem(cache, index, numbers) if is_static(cache) else rooms.problem(cache, index)


def tokens_in(cache: Any, index: int) -> int:
    """How many tokens the cache's layer shows."""
    return static_rooms.tokens_in(cache, index) if is_static(cache) else rooms.tokens_in(cache, index)


def places_in(cache: Any, index: int) -> int:
    """How many a mask for the cache's layer has, filled or not; 0: as many as there are tokens."""
    return int(cache.layers[index].max_cache_len) if is_static(cache) else 0


def together_problem(cache: Any, indices: Sequence[int], numbers: Numbers) -> str:
    """Why these layers of a cache cannot be given room together; "" where they can."""
    if is_static(cache):
        return static_rooms.together_problem(cache, indices, numbers)
    return rooms.together_problem(cache, indices)


def make_rooms(
    cache: Any, indices: Sequence[int], shape: tuple[int, int, int, int], numbers: Numbers
) -> Rooms | StaticRooms:
    """For keys and values of this shape (batch, heads, tokens, head size) behind those of these layers.

    Raises ValueError where those of the layers are of another batch or size."""
    made = static_rooms.make_rooms if is_static(cache) else rooms.make_rooms
    return made(cache, indices, shape, numbers)

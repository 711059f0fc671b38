"""Puts weights into the ordinary layout for training or for a change of type, and packs them again later."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from hfaccel.engine.calls.guards import COMPUTED
from hfaccel.engine.kernels import Kind, kernels_problem
from hfaccel.engine.weights.exchange import exchange, is_in_use
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.memory import Arena, padded
from hfaccel.memory.arena import HUGE_PAGE

WAS = "_hfaccel_was_"  # and its name: attribute of a module whose parameter was packed and is not now
LARGE = 4 * HUGE_PAGE  # bytes of a weight from which rounding up to huge pages wastes little
SHARED = 32 * HUGE_PAGE  # bytes of an arena for smaller weights; none is touched before a weight takes it
ARENA = "_hfaccel_arena"  # attribute of packed bytes: keeps their arena alive, so that further weights use it


@dataclass(frozen=True)
class Was:
    """How a weight was packed."""

    kind: Kind | None  # None: the kind of its own dtype
    factors: torch.Tensor | None


def kind_of(dtype: torch.dtype) -> Kind:
    """The kind in which a weight of this dtype is packed if none is asked for."""
    half = dtype is torch.bfloat16 and not kernels_problem()
    return Kind.BFLOAT16 if half else Kind.FLOAT32


def unpack_for_now(module: nn.Module, name: str = "weight") -> None:
    """Give the parameter its ordinary layout, and remember how it was packed."""
    weight = module._parameters.get(name)
    if isinstance(weight, PackedWeight):
        own = weight.kind is kind_of(weight.dtype)
        module.__dict__[WAS + name] = Was(None if own else weight.kind, weight._factors())
        weight.make_dense()


def unpack_to_train(module: nn.Module, name: str = "weight") -> None:
    """Like `unpack_for_now`, unless something inside torch holds the weight (DistributedDataParallel)."""
    weight = module._parameters.get(name)
    if isinstance(weight, PackedWeight) and not is_in_use(weight):
        unpack_for_now(module, name)


def pack_again(module: nn.Module, cls: type[PackedWeight], *, exactly: bool, name: str = "weight") -> None:
    """Pack a parameter that was packed before, if its type and device allow that. `exactly`: only if no
    value is rounded; training has usually changed the values, so that they would be."""
    was, weight = module.__dict__.get(WAS + name), module._parameters.get(name)
    if was is None or isinstance(weight, PackedWeight):
        module.__dict__.pop(WAS + name, None)
        return
    if weight is None or not _can_be_packed(weight):
        return
    kind = kind_of(weight.dtype) if was.kind is None else was.kind
    arena = arena_for_one(padded(cls.layout_of(kind, weight.shape).nbytes))
    packed = cls.pack(weight, arena, kind, was.factors)
    setattr(packed.memory, ARENA, arena)
    if exactly and was.kind is not None and not _is_near(packed, weight):
        return
    with torch.inference_mode(False):
        exchange(weight, packed)
    del module.__dict__[WAS + name]


def _can_be_packed(weight: torch.Tensor) -> bool:
    plain = type(weight) is nn.Parameter and weight.is_cpu and weight.dtype in COMPUTED
    return plain and not (weight.is_inference() or weight.is_shared() or is_in_use(weight))


def _is_near(packed: PackedWeight, weight: torch.Tensor) -> bool:
    """Whether packing has changed no value. int8 is compared with a tolerance, because the weight is
    multiplied by its scales in another order."""
    if packed.kind is Kind.BFLOAT16:
        return torch.equal(packed.unpack(), weight)
    return torch.allclose(packed.unpack(), weight.detach(), rtol=1e-6, atol=0)


def arena_for_one(size: int) -> Arena:
    """An arena with room for a weight, if possible the last one: others of the model follow."""
    if size >= LARGE:
        return _new_arena(size)
    last: Callable[[], Arena | None] = getattr(_thread, "last", lambda: None)
    arena = last()
    if arena is None or arena.room < size:
        arena = _new_arena(SHARED)
        _thread.last = weakref.ref(arena)
    return arena


def _new_arena(size: int) -> Arena:
    with torch.inference_mode(False):
        return Arena(size, pages="thp")


_thread = threading.local()  # `last`: the arena that this thread has last packed into

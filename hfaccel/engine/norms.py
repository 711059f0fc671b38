"""Which norms the kernels know, and the kernels' objects for them."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import torch
from torch import nn

from hfaccel.engine.kernels import kernels
from hfaccel.native import NativeNorm

Vector = torch.Tensor | None
EPSILONS = ("variance_epsilon", "eps")  # attributes of norms


class NormKind(IntEnum):
    """The numbers of native/kernels/rows.h."""

    LAYER = 0
    RMS = 1
    NONE = 2


def norm_kind(module: nn.Module) -> NormKind | None:
    """The kind of a norm; None for any other module. Most models define their own class of root mean square
    norms. These are recognised by their attributes, and confirmed by the trial of their layer."""
    if type(module) is nn.LayerNorm:
        return NormKind.LAYER
    if type(module) is nn.Identity:
        return NormKind.NONE
    if set(module._parameters) == {"weight"} and isinstance(getattr(module, "variance_epsilon", None), float):
        return NormKind.RMS
    return None


def epsilon(norm: nn.Module) -> float:
    return float(next((getattr(norm, name) for name in EPSILONS if hasattr(norm, name)), 0.0))


def native_norm(norm: nn.Module, float32: Callable[[Vector], Vector]) -> NativeNorm:
    """The kernels' object for a norm. `float32` returns the vector that is read in place of the weight or the
    bias, and keeps that vector alive."""
    kind = norm_kind(norm)
    assert kind is not None
    vectors = (float32(norm._parameters.get(name)) for name in ("weight", "bias"))
    weight, bias = (0 if vector is None else vector.data_ptr() for vector in vectors)
    return kernels().Norm(weight, bias, epsilon(norm), kind)

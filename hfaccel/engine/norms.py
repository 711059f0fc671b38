"""Which modules are norms that the kernels know, and how the kernels take them."""

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
    """None for what is no such norm. Root mean square norms have a class of their own in most models: they
    are known by their parts, and by the trial of the layer that they belong to."""
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
    """As the kernels take it. `float32` gives the vector that is read in place of the weight or the bias, and
    keeps it alive."""
    kind = norm_kind(norm)
    assert kind is not None
    vectors = (float32(norm._parameters.get(name)) for name in ("weight", "bias"))
    weight, bias = (0 if vector is None else vector.data_ptr() for vector in vectors)
    return kernels().Norm(weight, bias, epsilon(norm), kind)

"""Which modules are norms that the kernels know."""

from __future__ import annotations

from enum import IntEnum

from torch import nn


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
    return float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0)))

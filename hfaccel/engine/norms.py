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
    """The numbers of native/kernels/rows.h, and kinds that are computed as one of these."""

    LAYER = 0
    RMS = 1
    NONE = 2
    RMS_ABOVE_ONE = 3  # Gemma's, which multiplies by 1 + weight
    LAYER_ABOVE_ONE = 4  # Nemotron's

    @property
    def native(self) -> NormKind:
        return {NormKind.RMS_ABOVE_ONE: NormKind.RMS, NormKind.LAYER_ABOVE_ONE: NormKind.LAYER}.get(
            self, self
        )

    @property
    def plus(self) -> float:
        """What is added to the weight."""
        return 1.0 if self in (NormKind.RMS_ABOVE_ONE, NormKind.LAYER_ABOVE_ONE) else 0.0


_kinds: dict[tuple[type, bool], NormKind | None] = {}
_epsilons: dict[type, float] = {}


def norm_kind(module: nn.Module) -> NormKind | None:
    """The kind of a norm; None for any other module. Most models define classes of norms of their own, which
    one call on random numbers tells apart. The trial of the norm's layer confirms the kind."""
    if type(module) is nn.LayerNorm:
        return NormKind.LAYER
    if type(module) is nn.Identity:
        return NormKind.NONE
    if not _may_be_norm(module):
        return None
    key = type(module), "weight" in module._parameters
    if key not in _kinds:
        _kinds[key] = _probed_kind(module)
    return _kinds[key]


def epsilon(norm: nn.Module) -> float:
    found = next((getattr(norm, name) for name in EPSILONS if hasattr(norm, name)), None)
    if found is not None:
        return float(found)
    if norm_kind(norm) in (None, NormKind.NONE):
        return 0.0
    if type(norm) not in _epsilons:
        _epsilons[type(norm)] = _probed_epsilon(norm)
    return _epsilons[type(norm)]


def norm_weight(norm: nn.Module) -> Vector:
    """What the norm multiplies by, in float32."""
    kind, weight = norm_kind(norm), norm._parameters.get("weight")
    return None if weight is None or kind is None else weight.detach().float() + kind.plus


def native_norm(norm: nn.Module, float32: Callable[[Vector, float], Vector]) -> NativeNorm:
    """The kernels' object for a norm. `float32` returns the vector that is read in place of the weight or the
    bias plus a number, and keeps that vector alive."""
    kind = norm_kind(norm)
    assert kind is not None
    vectors = float32(norm._parameters.get("weight"), kind.plus), float32(norm._parameters.get("bias"), 0.0)
    weight, bias = (0 if vector is None else vector.data_ptr() for vector in vectors)
    return kernels().Norm(weight, bias, epsilon(norm), kind.native)


def _may_be_norm(module: nn.Module) -> bool:
    """By its attributes. One without a weight and an epsilon has a constant in its code."""
    has_epsilon = any(isinstance(getattr(module, name, None), float) for name in EPSILONS)
    if module._modules or not module._parameters.keys() <= {"weight", "bias"}:
        return False
    return has_epsilon or (not module._parameters and hasattr(module, "normalized_shape"))


def _probed_kind(norm: nn.Module) -> NormKind | None:
    rows = _random_rows(norm) + 0.5
    generator = torch.Generator().manual_seed(1)
    weight, bias = (torch.rand(_shape(norm), generator=generator) for _ in range(2))
    got = _call(norm, rows, weight, bias)
    centred = rows - rows.mean(-1, keepdim=True)
    factor = torch.ones(()) if norm._parameters.get("weight") is None else weight
    added = torch.zeros(()) if norm._parameters.get("bias") is None else bias
    for kind in (NormKind.LAYER, NormKind.RMS, NormKind.RMS_ABOVE_ONE, NormKind.LAYER_ABOVE_ONE):
        numbers = centred if kind.native is NormKind.LAYER else rows
        sizes = numbers.square().mean(-1, keepdim=True).sqrt()
        expected = numbers / sizes * (factor + kind.plus) + added
        if got is not None and got.shape == expected.shape and torch.allclose(got, expected, 1e-2, 1e-3):
            return kind
    return None


def _probed_epsilon(norm: nn.Module) -> float:
    """Of numbers so small that it decides their size."""
    rows = _random_rows(norm).double() * 1e-3
    kind = norm_kind(norm)
    assert kind is not None
    got = _call(norm, rows.float(), torch.full(_shape(norm), 1.0 - kind.plus), torch.zeros(_shape(norm)))
    assert got is not None
    numbers = rows - rows.mean(-1, keepdim=True) if kind.native is NormKind.LAYER else rows
    squares = numbers.square().mean(-1)
    found = squares / got.double().square().mean(-1) - squares
    return float(f"{found.mean().item():.3g}")


def _shape(norm: nn.Module) -> tuple[int, ...]:
    weight = norm._parameters.get("weight")
    return tuple(getattr(norm, "normalized_shape", ()) if weight is None else weight.shape)


def _random_rows(norm: nn.Module) -> torch.Tensor:
    return torch.randn(3, *_shape(norm), generator=torch.Generator().manual_seed(0))


def _call(norm: nn.Module, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Vector:
    """The result of the norm's forward with another weight and bias; None where it cannot be called so."""
    twin = object.__new__(type(norm))
    vectors = {"weight": weight, "bias": bias}
    held = {name: None if own is None else vectors[name] for name, own in norm._parameters.items()}
    twin.__dict__.update(vars(norm), _parameters=held)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            result = type(norm).forward(twin, rows.clone())
    except Exception:  # noqa: BLE001 (whatever a foreign forward raises: it is no norm)
        return None
    return result if isinstance(result, torch.Tensor) else None

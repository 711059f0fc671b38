"""Which parts of a model may fall back to its own path, and how often they did."""

from __future__ import annotations

from collections import Counter

from torch import nn

from hfaccel.engine.fallback import Told, stock_calls_of, tell
from hfaccel.engine.layer import FusedLayer
from hfaccel.engine.linear import PackedModule
from hfaccel.engine.region import Region


def stock_calls(model: nn.Module) -> Counter[str]:
    """How often the model's fused layers, regions and packed linear layers took the stock path, by reason."""
    total: Counter[str] = Counter()
    for part in _parts(model):
        total.update(stock_calls_of(part))
    return total


def watch(model: nn.Module) -> None:
    """From now on tell whoever calls the model when a part of it falls back."""
    told = Told(type(model).__name__)
    for part in _parts(model):
        tell(part, told)


def _parts(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, FusedLayer | Region | PackedModule)]

"""Which parts of a model may fall back to the model's own path, and how often they did."""

from __future__ import annotations

from collections import Counter

from torch import nn

from hfaccel.engine.calls.fallback import COUNTED, Told, stock_calls_of, tell
from hfaccel.engine.models.padding import PaddedModel, padded_calls_of
from hfaccel.engine.replacements import ModuleReplacement


def stock_calls(model: nn.Module) -> Counter[str]:
    """How often parts of the model took the stock path, by reason."""
    total: Counter[str] = Counter()
    for part in _parts(model):
        total.update(stock_calls_of(part))
    return total


def padded_calls(model: nn.Module) -> Counter[str]:
    """How many calls of the model computed their padding, by reason."""
    total: Counter[str] = Counter()
    for part in model.modules():
        if isinstance(part, PaddedModel):
            total.update(padded_calls_of(part))
    return total


def watch(model: nn.Module) -> None:
    """From now on, warn the model's callers when a part of the model falls back."""
    told = Told(type(model).__name__)
    for part in _parts(model):
        tell(part, told)


def _parts(model: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in model.modules()
        if isinstance(module, ModuleReplacement) and COUNTED in module.hfaccel_own
    ]

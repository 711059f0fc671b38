"""Attributes of a layer's parts. A forward reads numbers, flags and functions from them; the kernels do not,
so each call checks that they are unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType

import torch
from torch import nn

from hfaccel.engine.calls.code import stock_class
from hfaccel.engine.norms import EPSILONS

PLAIN = (bool, int, float, str, type(None), torch.dtype)
FUNCTIONS = (FunctionType, BuiltinFunctionType)
# Classes without attributes that matter: those of a linear layer repeat its weight's shape, those of a
# dropout matter in training mode only.
INERT = (nn.Linear, nn.Dropout, nn.Identity)
_TORCHS = frozenset(vars(nn.Module()))

Setting = tuple[str, str, object]  # path of the part, name of the attribute, value
_NOTHING = object()
# Attributes that change without changing results: of training, and of rotary positions' caches.
PASSING = ("gradient_checkpointing", "max_seq_len_cached")


def settings_of(module: nn.Module) -> Iterator[Setting]:
    """The settings of the module and all its parts. Epsilons of norms are left out: the kernels read them."""
    for path, part in module.named_modules():
        yield path, "__class__", stock_class(part)
        yield from ((path, name, value) for name, value in own_settings(part))


def plain_settings(module: nn.Module) -> dict[str, object]:
    """What the forwards of the module and its parts read besides tensors, by path and name. A class is given
    by its name, because torch makes some for a single module. Names that begin with _ are bookkeeping."""
    settings: dict[str, object] = {}
    for path, part in module.named_modules():
        cls = stock_class(part)
        settings[f"{path}.__class__"] = f"{cls.__module__}.{cls.__qualname__}"
        found = [*own_settings(part), *((name, vars(part).get(name)) for name in EPSILONS)]
        settings |= {f"{path}.{name}": value for name, value in found if _is_kept(name, value)}
    return settings


def _is_kept(name: str, value: object) -> bool:
    if value is None or name.startswith("_") or name in PASSING:
        return False
    return isinstance(value, (*PLAIN, *FUNCTIONS))


def own_settings(part: nn.Module) -> Iterator[tuple[str, object]]:
    if stock_class(part) not in INERT:
        yield from ((name, value) for name, value in vars(part).items() if _counts(name, value))


def setting_problem(module: nn.Module, settings: tuple[Setting, ...]) -> str:
    """Which attribute has changed; "" for none."""
    parts = dict(module.named_modules())
    for path, name, value in settings:
        part, where = parts.get(path), f" of {path}" if path else ""
        if part is None:
            return f"the submodule {path} was removed"
        now = stock_class(part) if name == "__class__" else vars(part).get(name, _NOTHING)
        if now is not value and not (isinstance(value, PLAIN) and type(now) is type(value) and now == value):
            return f"the attribute {name}{where} was changed"
    for path, part in parts.items():
        name = next((each for each in vars(part) if _hides(part, each)), "")
        if name:
            return f"the method {name} of {path or 'the layer'} was replaced"
    return ""


def _counts(name: str, value: object) -> bool:
    if name in _TORCHS or name in EPSILONS or name.startswith("_hfaccel"):
        return False
    return isinstance(value, (*PLAIN, *FUNCTIONS)) or name == "config"


def _hides(part: nn.Module, name: str) -> bool:
    """Whether an attribute of the part hides a method of its class. Forwards are checked elsewhere."""
    return name != "forward" and isinstance(getattr(type(part), name, None), FunctionType)

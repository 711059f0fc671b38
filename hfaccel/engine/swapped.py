"""Modules that become instances of a subclass of their class, with everything else as it was."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

_classes: dict[Any, type[nn.Module]] = {}


class Swapped(nn.Module):
    """Mixed into a module's class by `swap`, which sets `hfaccel_stock`, that class, and `hfaccel_key`, the
    value that the mixin works with."""

    hfaccel_stock: type[nn.Module]
    hfaccel_key: Any
    hfaccel_keeps_name: ClassVar[bool] = False  # what the module is called is seen outside

    def __reduce_ex__(self, protocol: Any) -> Any:
        mixin = next(base for base in type(self).__bases__ if issubclass(base, Swapped))
        return _new, (mixin, self.hfaccel_stock, self.hfaccel_key), self.__getstate__()


def swap(module: nn.Module, mixin: type[Swapped], key: Any = None) -> None:
    """Give the module a class of `mixin` and its own, the same one for the same arguments."""
    module.__class__ = _class(mixin, type(module), key)


def swap_back(module: Swapped) -> None:
    """Undo `swap`."""
    plain: nn.Module = module
    plain.__class__ = module.hfaccel_stock


def shadow(module: nn.Module, children: Mapping[str, Any]) -> nn.Module:
    """The module with other children under these names. All else is shared, and read at each call."""
    result: nn.Module = object.__new__(type(module))
    result.__dict__ = module.__dict__ | {"_modules": {**module._modules, **children}}
    return result


def _class(mixin: type[Swapped], stock: type[nn.Module], key: Any) -> type[nn.Module]:
    if (mixin, stock, key) not in _classes:
        members = {"hfaccel_key": key, "hfaccel_stock": stock, "__module__": mixin.__module__}
        name = f"Fused{stock.__name__}"
        if mixin.hfaccel_keeps_name:
            name = stock.__name__
            members |= {"__module__": stock.__module__, "__qualname__": stock.__qualname__}
            members["forward"] = _with_signature(mixin.forward, stock.forward)
        _classes[mixin, stock, key] = type(name, (mixin, stock), members)
    return _classes[mixin, stock, key]


def _with_signature(forward: Any, stock: Any) -> Any:
    """transformers asks for the arguments of a model's forward."""

    @functools.wraps(stock)
    def same(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return same


def _new(mixin: type[Swapped], stock: type[nn.Module], key: Any) -> nn.Module:
    """For pickle and deepcopy: an empty module, filled by __setstate__."""
    cls = _class(mixin, stock, key)
    return cls.__new__(cls)

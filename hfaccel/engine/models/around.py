"""All of a model but its layers, which check themselves: whether it is as it was when a way past the model's
own forward was found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from hfaccel.engine.calls.code import current
from hfaccel.engine.calls.guards import GLOBAL_HOOKS
from hfaccel.engine.calls.settings import own_settings
from hfaccel.engine.calls.snapshot import Held, Snapshot


class Around:
    """The model's own forward and mode are left to its caller: what held them would hold the model, which
    holds this object, and the model would stay alive after its last user."""

    def __init__(self, model: Any, layers: nn.ModuleList) -> None:
        modules = list(_outside(model, layers))
        hooks = [table for each in modules for table in (each._forward_hooks, each._forward_pre_hooks)]
        self.config = model.config
        self._code = current(modules)  # which a trial is about to run
        self._unchanged = Snapshot(_held(model, modules), (*hooks, *GLOBAL_HOOKS), (), modules[1:])

    def holds(self) -> bool:
        """Whether nothing has changed."""
        return self._unchanged.holds() and self._code.holds()


def has_own_ways(model: nn.Module) -> bool:
    """Whether a part of the model has a hook, or a forward other than its class's."""
    return any(
        each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each) for each in model.modules()
    )


def _outside(model: nn.Module, layers: nn.ModuleList) -> Iterator[nn.Module]:
    """All modules except the layers and their parts."""
    yield model
    for child in model.children():
        if child is not layers:
            yield from _outside(child, layers)


def _held(model: Any, modules: list[nn.Module]) -> Iterator[Held]:
    for each in modules:
        yield from ((each._modules, name, child) for name, child in each._modules.items())
        if each is not model:
            yield vars(each), "forward", None
            yield vars(each), "training", False
            yield from ((vars(each), name, value) for name, value in own_settings(each))
    config = vars(model.config)
    yield from ((config, name, value) for name, value in config.items())

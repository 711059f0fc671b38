"""All of a model but its layers, which check themselves: whether it is as it was when a way past the model's
own forward was found."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from torch import nn

from hfaccel.engine.calls.code import current
from hfaccel.engine.calls.guards import GLOBAL_HOOKS
from hfaccel.engine.calls.settings import own_settings
from hfaccel.engine.calls.snapshot import Held, Snapshot
from hfaccel.engine.models.fast_path import NoFastPath

NOT_SOUGHT = "it has not been searched for yet"
TRAINS = "a part of it is in training mode"  # a trial would draw from the program's random numbers
_seeking = threading.Lock()


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


class Way(Protocol):
    """A way past a model's own forward."""

    around: Around


W = TypeVar("W", bound=Way)


def found_way(model: nn.Module, name: str, find: Callable[[Any], W | str]) -> W | None:
    """The way that `find(model)` finds; the model keeps it under this name, or the reason why there is none.
    A copy or a loaded model looks for a way at its second call, so that the first result does not wait
    for the search. None, too, where the model has another config than then."""
    found: W | str | None = model.__dict__.get(name)
    if found is None:
        found = model.__dict__[name] = NOT_SOUGHT
    elif found is NOT_SOUGHT and _seeking.acquire(blocking=False):  # a fork may have copied it locked
        try:
            found = find(model)
        finally:
            _seeking.release()
        if found is not TRAINS:
            model.__dict__[name] = found
    if isinstance(found, str) or found.around.config is not model.__dict__.get("config"):
        return None
    return found


def seek(model: nn.Module, attempt: Callable[[], W | str]) -> W | str:
    """What the attempt returns; or why it cannot be made, or has failed."""
    if any(each.training for each in model.modules()):
        return TRAINS
    if any(
        each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each) for each in model.modules()
    ):
        return "a part of it has a hook, or a forward other than its class's"
    try:
        return attempt()
    except NoFastPath as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 (whatever a foreign forward raises is the reason)
        return f"{type(error).__name__}: {error}"


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

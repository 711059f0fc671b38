"""Parts of a model that run channels last, and in which a convolution does the work of the norm and the
activation after it.

A region keeps its own forward. Images are converted to channels last before it and back after it, so that no
other layout is visible outside. Inside, a convolution hands over its result together with the modules whose
work the result contains; each of these modules returns that tensor unchanged. If one of them is never called
(it was replaced, or the forward takes another path), the stock modules repeat the call, and the reason is
counted.
"""

from __future__ import annotations

import threading

import torch
from torch import nn

from hfaccel.engine.calls.fallback import COUNTED, GRADIENTS, TRAINS, fall_back
from hfaccel.engine.calls.guards import GLOBAL_HOOKS, stock_reason
from hfaccel.engine.replacements import Arguments, Keywords, ModuleReplacement, register
from hfaccel.upstream.of_torch import tree_leaves, tree_map

_thread = threading.local()


class Pass:
    """One call of a region in one thread: the results whose followers have not been called yet."""

    def __init__(self) -> None:
        self.handed: dict[int, tuple[torch.Tensor, tuple[nn.Module, ...]]] = {}

    def hand(self, result: torch.Tensor, followers: tuple[nn.Module, ...]) -> None:
        if followers:
            self.handed[id(result)] = (result, followers)

    def takes(self, input: object, follower: nn.Module) -> bool:
        """Whether the convolution has already done the work of `follower` on this tensor."""
        tensor, followers = self.handed.get(id(input), (None, ()))
        if tensor is None or tensor is not input or followers[0] is not follower:
            return False
        del self.handed[id(input)]
        self.hand(tensor, followers[1:])
        return True

    def __enter__(self) -> Pass:
        self.outer = current()
        _thread.current = self
        return self

    def __exit__(self, *error: object) -> None:
        _thread.current = self.outer


def current() -> Pass | None:
    """The call of a region that this thread is in; None outside of regions."""
    return getattr(_thread, "current", None)


class Follower(ModuleReplacement):
    """A norm or activation that returns its input if a convolution has done the work already."""

    hfaccel_signatures = ("forward",)
    hfaccel_own = (COUNTED,)

    def forward(self, *args: object, **kwargs: object) -> object:
        if not torch.compiler.is_compiling() and len(args) == 1 and not kwargs:
            run = current()
            if run is not None and run.takes(args[0], self):
                return args[0]
        return super().forward(*args, **kwargs)


@register
class Region(ModuleReplacement):
    hfaccel_name = "region"
    hfaccel_signatures = ("forward",)
    hfaccel_own = (COUNTED,)

    def forward(self, *args: object, **kwargs: object) -> object:
        if torch.compiler.is_compiling():
            return super().forward(*args, **kwargs)
        problem = self.__dict__.get("_hfaccel_off", "") or self._problem(args, kwargs)
        if not problem:
            try:
                with Pass() as run:
                    result = super().forward(
                        *map(_channels_last, args),
                        **{name: _channels_last(value) for name, value in kwargs.items()},
                    )

                if not run.handed:
                    return _turned_back(result)
                problem = self.__dict__["_hfaccel_off"] = "a norm or activation was replaced or left out"
            except RuntimeError as error:
                # If the stock forward fails too, its error is raised; if not, the layout was the reason.
                problem = f"the call failed channels last ({str(error).splitlines()[0]})"
                result = super().forward(*args, **kwargs)
                self.__dict__["_hfaccel_off"] = problem
                fall_back(self, problem)
                return result
        fall_back(self, problem)
        return super().forward(*args, **kwargs)

    def _problem(self, args: Arguments, kwargs: Keywords) -> str:
        if self.training:
            return TRAINS
        if torch.is_grad_enabled():
            return GRADIENTS
        if any(GLOBAL_HOOKS):
            return "a hook is registered for all modules"
        tensors = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        images = [tensor for tensor in tensors if tensor.dim() >= 2 and tensor.is_floating_point()]
        return next(filter(None, map(stock_reason, images)), "")


def _channels_last(value: object) -> object:
    if isinstance(value, torch.Tensor) and value.dim() == 4 and value.is_floating_point():
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _turned_back(result: object) -> object:
    """The result in the layout of stock convolutions; the same object if nothing has to be converted."""
    if not any(map(_is_turned, tree_leaves(result))):
        return result
    return tree_map(lambda value: value.contiguous() if _is_turned(value) else value, result)


def _is_turned(value: object) -> bool:
    if not isinstance(value, torch.Tensor) or value.is_contiguous():
        return False
    if value.dim() == 3:
        return bool(value.transpose(1, 2).is_contiguous())
    return value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)

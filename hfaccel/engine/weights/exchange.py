"""Turns a parameter into another tensor, while it stays the object that optimizers, ties and hooks hold.

`torch.utils.swap_tensors` does the same, but refuses a parameter that has weak references, although these
stay valid, and a parameter that a graph still needs. Here a graph keeps the tensor that it was made with, and
passes that tensor's gradient on to the parameter.
"""

from __future__ import annotations

import weakref

import torch

from hfaccel.upstream.of_torch import swap, use_count

# The parameter itself, and the node that accumulates its gradient. More users mean a graph that has not run
# yet, or DistributedDataParallel.
USERS = 2


def is_in_use(parameter: torch.Tensor) -> bool:
    """Whether something inside torch holds the values too: a graph that has saved them and has not run yet,
    or DistributedDataParallel."""
    return use_count(parameter) > USERS


def exchange(parameter: torch.Tensor, replacement: torch.Tensor, own: tuple[str, ...] = ()) -> None:
    """Give `parameter` the class, memory and values of `replacement`, and vice versa. The parameter keeps its
    identity, gradient, hooks, and the attributes that other code has attached, except those named in `own`.

    Exchanging the same two again undoes the exchange. If torch cannot exchange them, because something holds
    a C++ weak reference, raises RuntimeError and changes nothing.
    """
    gradient, before = parameter.grad, parameter._backward_hooks
    after = parameter._post_accumulate_grad_hooks
    is_needed = use_count(parameter) > 1 and parameter.requires_grad
    attached = {name: value for name, value in vars(parameter).items() if name not in own}
    swap(parameter, replacement)
    parameter.__class__, replacement.__class__ = replacement.__class__, parameter.__class__
    inside = dict(vars(parameter)), dict(vars(replacement))
    for tensor, attributes in zip((replacement, parameter), inside, strict=True):
        vars(tensor).clear()
        vars(tensor).update(attributes)
    vars(parameter).update(attached)
    replacement.grad, parameter.grad = None, gradient
    parameter._backward_hooks, parameter._post_accumulate_grad_hooks = before, after
    if is_needed:
        _hand_over(replacement, parameter)


def _hand_over(old: torch.Tensor, parameter: torch.Tensor) -> None:
    """Pass gradients that a graph accumulates in `old` on to the parameter and its hooks."""
    found = weakref.ref(parameter)

    def add(tensor: torch.Tensor) -> None:
        gradient, target = tensor.grad, found()
        tensor.grad = None
        if target is None or gradient is None:
            return
        gradient = gradient.to(target.device, target.dtype)
        target.grad = gradient if target.grad is None else target.grad + gradient
        for hook in (target._post_accumulate_grad_hooks or {}).values():
            hook(target)

    old._post_accumulate_grad_hooks = None  # type: ignore[assignment]
    old.register_post_accumulate_grad_hook(add)

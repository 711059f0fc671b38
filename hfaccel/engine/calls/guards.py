"""Whether the kernels may compute a call. A call that is recorded, transformed or watched runs on torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from hfaccel.engine.calls.fallback import AUTOCAST, EMPTY, TRACED
from hfaccel.upstream.of_torch import dual_level, global_hooks, tracing_state, transforms
from hfaccel.upstream.of_transformers import COLLECTING, collected

COMPUTED = (torch.float32, torch.bfloat16)  # dtypes that the kernels take
# Hooks for all modules (register_module_forward_hook and similar): no module's call may be skipped.
GLOBAL_HOOKS = global_hooks

# Keeps a function out of torch.compile's graphs; with fullgraph=True the error shows the reason.
outside_graphs = torch.compiler.disable(
    reason="hfaccel's kernels are no part of torch's graphs; call hfaccel.restore(model) before "
    "torch.compile(model, fullgraph=True)"
)


def stock_reason(tensor: torch.Tensor) -> str:
    """Why a call with this input must take torch's own path; "" if the kernels may run."""
    if type(tensor) is not torch.Tensor or is_traced():
        return TRACED
    if tensor.dtype not in COMPUTED:
        return f"computed in {str(tensor.dtype).removeprefix('torch.')}"
    if not tensor.is_cpu:
        return f"computed on {tensor.device.type}"
    if tensor.numel() == 0:
        return EMPTY
    return AUTOCAST if torch.is_autocast_enabled("cpu") else ""


def is_traced() -> bool:
    """Whether something records or transforms every torch operation, and so would miss a kernel: a tracer,
    torch.func (whose tensors have no address), forward-mode differentiation."""
    return (
        torch.compiler.is_compiling()
        or tracing_state() is not None
        or transforms() is not None
        or dual_level() >= 0
    )


def is_watched() -> bool:
    """Whether something sees or changes every operation."""
    return is_traced() or torch.is_autocast_enabled("cpu") or any(GLOBAL_HOOKS)


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook wants to see calls of this module."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or any(GLOBAL_HOOKS)


def has_foreign(hooks: Mapping[int, object]) -> bool:
    """Whether any of these hooks is not transformers' own."""
    return bool(hooks) and any(hook.__module__ != COLLECTING for hook in hooks.values())


def is_hooked(layer: nn.Module) -> bool:
    """Whether a hook sees this layer's call. Once hidden states were asked for, transformers leaves its hooks
    behind; these see something only while transformers collects."""
    if not layer._forward_hooks and not layer._forward_pre_hooks:
        return False
    if has_foreign(layer._forward_hooks) or has_foreign(layer._forward_pre_hooks):
        return True
    names = collected()
    return names is None or bool(names)

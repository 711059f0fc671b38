"""Whether the kernels may compute a call: what records, transforms or watches it runs on torch alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from hfaccel.engine.calls.fallback import AUTOCAST, EMPTY, TRACED
from hfaccel.upstream.of_torch import dual_level, global_hooks, tracing_state, transforms
from hfaccel.upstream.of_transformers import COLLECTING, collected

COMPUTED = (torch.float32, torch.bfloat16)  # types of what the kernels are given
# Hooks of register_module_forward_hook and its like, which see every module: none may be left out.
GLOBAL_HOOKS = global_hooks

# torch.compile leaves what this decorates out of its graphs; with fullgraph=True the error shows the reason.
outside_graphs = torch.compiler.disable(
    reason="hfaccel's kernels are no part of torch's graphs; call hfaccel.restore(model) before "
    "torch.compile(model, fullgraph=True)"
)


def stock_reason(tensor: torch.Tensor) -> str:
    """Why a call with this input must take torch's own path; "" where the kernels may run."""
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
    """Whether something records or transforms every operation of torch, of which a kernel is none: a tracer,
    torch.func (whose tensors have no address), forward-mode differentiation."""
    return (
        torch.compiler.is_compiling()
        or tracing_state() is not None
        or transforms() is not None
        or dual_level() >= 0
    )


def is_watched() -> bool:
    """Whether something sees every operation, or changes it."""
    return is_traced() or torch.is_autocast_enabled("cpu") or any(GLOBAL_HOOKS)


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook wants to see calls of this module."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or any(GLOBAL_HOOKS)


def has_foreign(hooks: Mapping[int, object]) -> bool:
    """Whether any of these is not transformers' own."""
    return bool(hooks) and any(hook.__module__ != COLLECTING for hook in hooks.values())


def is_hooked(layer: nn.Module) -> bool:
    """Whether somebody sees this layer's call. The hooks that transformers leaves behind, once hidden states
    were asked for, see something only while it collects."""
    if not layer._forward_hooks and not layer._forward_pre_hooks:
        return False
    if has_foreign(layer._forward_hooks) or has_foreign(layer._forward_pre_hooks):
        return True
    names = collected()
    return names is None or bool(names)

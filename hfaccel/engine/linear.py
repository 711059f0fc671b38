"""Linear layers on oneDNN's GEMM, with the weight packed once.

The operators are torch's own (`mkldnn::_linear_pointwise`), the ones that TorchInductor emits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hfaccel.engine.packed import PackedWeight, exchange
from hfaccel.memory import Arena

linear_pointwise = torch.ops.mkldnn._linear_pointwise.default
linear_add = torch.ops.mkldnn._linear_pointwise.binary

# Calling into oneDNN costs 17 microseconds; in layers narrower than this torch's own path is faster
# at every number of tokens (benchmarks/linear.py).
MIN_WIDTH = 256

# Activations that oneDNN computes on the GEMM's result while it is in registers: class name (of torch
# or transformers) -> the operator's (name, algorithm).
FUSED_ACTIVATIONS = {
    "GELUActivation": ("gelu", "none"),
    "GELUTanh": ("gelu", "tanh"),
    "PytorchGELUTanh": ("gelu", "tanh"),
    "NewGELUActivation": ("gelu", "tanh"),
    "ReLU": ("relu", ""),
    "SiLU": ("swish", ""),
    "SiLUActivation": ("swish", ""),
    "Tanh": ("tanh", ""),
}


def stock_reason(tensor: torch.Tensor) -> str:
    """Why a call with this input must take torch's own path; "" where oneDNN's may run."""
    if (
        type(tensor) is not torch.Tensor
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
    ):
        return "traced, or given a subclass of torch.Tensor"
    if tensor.dtype is not torch.float32:
        return f"computed in {str(tensor.dtype).removeprefix('torch.')}"
    if not tensor.is_cpu:
        return f"computed on {tensor.device.type}"
    if torch.is_autocast_enabled("cpu"):
        return "under autocast"
    if tensor.numel() == 0:
        return "the input is empty"
    return ""


class PackedLinear(nn.Linear):
    """nn.Linear with a PackedWeight. An nn.Linear becomes one by `pack` and stops being one by `unpack`.

    Everything but forward treats it as the nn.Linear that it is. Should the weight be replaced by an
    ordinary one (`.to(torch.bfloat16)`, `load_state_dict(assign=True)`), it computes as nn.Linear does.
    """

    @torch.compiler.disable
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if type(weight) is not PackedWeight or input.dim() < 2 or stock_reason(input):
            return super().forward(input)
        if torch.is_grad_enabled():
            result: torch.Tensor = _Linear.apply(input, weight, self.bias)
        else:
            result = linear_pointwise(input, weight.matrix, self.bias, "none", [], "")
        return result

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        """Where `.to()` and its like change the weight they get an ordinary one."""
        weight = self.weight
        if isinstance(weight, PackedWeight) and fn(weight) is not weight:
            weight.make_dense()
        super()._apply(fn, recurse)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Checkpoints hold ordinary tensors."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if isinstance(self.weight, PackedWeight) and not keep_vars:
            destination[prefix + "weight"] = self.weight.unpack()


class _Linear(torch.autograd.Function):
    """The packed GEMM where a gradient may be wanted; backward computes on the unpacked weight."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> Any:
        ctx.save_for_backward(input, weight)
        return linear_pointwise(input, weight.matrix, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        input, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_input, of_weight, of_bias = ctx.needs_input_grad
        return (
            gradient @ weight if of_input else None,
            rows.t() @ input.reshape(-1, input.shape[-1]) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def linear_problem(module: nn.Linear) -> str:
    """Why this layer is not packed; "" where it is."""
    weight = module.weight
    if type(module) is PackedLinear and type(weight) is PackedWeight:
        return ""  # by an earlier call, for another tree of modules that shares this layer
    dtype = str(weight.dtype).removeprefix("torch.")
    problems = {
        f"is a {type(module).__name__}, not a plain nn.Linear": type(module) is not nn.Linear,
        f"its weight is on {weight.device.type}": not weight.is_cpu,
        f"its weight is {dtype}; only float32 is packed": weight.dtype is not torch.float32,
        "its weight is not an ordinary parameter": type(weight) is not nn.Parameter,
        "its weight was made in inference mode, where parameters cannot be exchanged": weight.is_inference(),
        "its weight is in memory shared with other processes": weight.is_cpu and weight.is_shared(),
        f"narrower than {MIN_WIDTH}: torch's own path is faster": min(weight.shape) < MIN_WIDTH,
    }
    return next((problem for problem, applies in problems.items() if applies), "")


def pack(module: nn.Linear, arena: Arena) -> str:
    """Pack the weight into `arena`. The parameter keeps its identity: optimizers and ties see it too.

    Returns why it could not be packed; "" where it was. A weight packed for another module, to which
    this one is tied, is used as it is.
    """
    weight = module.weight
    if not isinstance(weight, PackedWeight):
        try:
            with torch.inference_mode(False):  # a parameter made in inference mode could not be exchanged
                exchange(weight, PackedWeight.pack(weight, arena))
        except RuntimeError as error:
            return f"its weight cannot be exchanged ({error})"
    module.__class__ = PackedLinear
    return ""


def unpack(module: PackedLinear) -> None:
    """Undo `pack`: an nn.Linear with an ordinary weight, bit for bit the one that was packed."""
    if isinstance(module.weight, PackedWeight):
        module.weight.make_dense()
    module.__class__ = nn.Linear  # type: ignore[assignment]

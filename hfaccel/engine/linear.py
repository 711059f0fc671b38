"""Linear layers whose weight is packed once, computed by the kernels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.autograd import forward_ad

from hfaccel import native
from hfaccel.engine.code import Code, code_of
from hfaccel.engine.kernels import Activation, Kind, kernels_problem
from hfaccel.engine.packed import PackedWeight, exchange
from hfaccel.memory import Arena

# In layers narrower than this torch's own path is as fast (benchmarks/linear.py).
MIN_WIDTH = 64
COMPUTED = (torch.float32, torch.bfloat16)


def stock_reason(tensor: torch.Tensor) -> str:
    """Why a call with this input must take torch's own path; "" where the kernels may run."""
    if type(tensor) is not torch.Tensor or is_traced():
        return "traced or transformed, or given a subclass of torch.Tensor"
    if tensor.dtype not in COMPUTED:
        return f"computed in {str(tensor.dtype).removeprefix('torch.')}"
    if not tensor.is_cpu:
        return f"computed on {tensor.device.type}"
    if torch.is_autocast_enabled("cpu"):
        return "under autocast"
    if tensor.numel() == 0:
        return "the input is empty"
    return ""


def is_traced() -> bool:
    """Whether something records or transforms every operation of torch, of which a kernel is none: a tracer,
    torch.func (whose tensors have no address), forward-mode differentiation."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def linear(
    input: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None,
    activation: Activation = Activation.NONE,
) -> torch.Tensor:
    """activation(input weight^T + bias), in the type of the input. `input`: (..., in_features), float32 or
    bfloat16."""
    assert native.kernels is not None
    rows, added = input.float().contiguous(), float32(bias)
    out_features, in_features = weight.packing.rows, weight.packing.columns
    output = torch.empty((*input.shape[:-1], out_features), dtype=torch.float32)
    native.kernels.linear(
        torch.get_num_threads(),
        weight.matrix(added),
        activation,
        rows.data_ptr(),
        in_features,
        output.data_ptr(),
        rows.numel() // in_features,
    )
    return output.to(input.dtype)


def float32(vector: torch.Tensor | None) -> torch.Tensor | None:
    """A bias as the kernels add it. Converted at each call where it is bfloat16: a copy kept from before
    would miss in-place changes."""
    return None if vector is None else vector.detach().float().contiguous()


def fits(vector: torch.Tensor | None) -> bool:
    """Whether the kernels can add this bias."""
    return vector is None or (vector.dtype in COMPUTED and vector.is_cpu)


class PackedModule(nn.Module):
    """A linear layer with a packed weight: mixed into the layer's own class. It becomes one by `pack` and
    stops being one by `unpack`.

    Everything but forward treats it as the layer that it is. Should the weight be replaced by an ordinary
    one (`.to(torch.bfloat16)`, `load_state_dict(assign=True)`), it computes as its own class does.
    """

    hfaccel_stock: ClassVar[type[nn.Module]]
    hfaccel_weight: ClassVar[type[PackedWeight]] = PackedWeight
    hfaccel_code: ClassVar[Code]  # of the layer's own class
    weight: Any
    bias: Any

    @torch.compiler.disable
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if type(weight) is not self.hfaccel_weight or input.dim() < 1 or stock_reason(input):
            return self._stock(input)
        if input.shape[-1] != weight.packing.columns or not fits(self.bias):
            return self._stock(input)  # raises torch's own error, or computes as torch does
        if not self.hfaccel_code.holds():
            return self._stock(input)
        if torch.is_grad_enabled():
            result: torch.Tensor = _Linear.apply(input, weight, self.bias)
        else:
            result = linear(input, weight, self.bias)
        return result

    def _stock(self, input: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = super().forward(input)
        return result

    def _apply(self, fn: Any, recurse: bool = True) -> PackedModule:
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


class PackedLinear(PackedModule, nn.Linear):
    hfaccel_stock = nn.Linear
    hfaccel_code = code_of([nn.Linear])


def packed_class(module: nn.Module) -> type[PackedModule] | None:
    """What this layer becomes, or is, when packed; None for what is no plain linear layer."""
    if isinstance(module, PackedModule):
        return type(module)
    if type(module) is nn.Linear:
        return PackedLinear
    if (type(module).__module__, type(module).__name__) == ("transformers.pytorch_utils", "Conv1D"):
        from hfaccel.engine.conv1d import PackedConv1D  # which imports transformers

        return PackedConv1D
    return None


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or packed_class(module) is not None


def weight_class(module: nn.Module) -> type[PackedWeight]:
    """The class of a linear layer's weight when it is packed."""
    cls = packed_class(module)
    return PackedWeight if cls is None else cls.hfaccel_weight


class _Linear(torch.autograd.Function):
    """The packed GEMM where a gradient may be wanted; backward computes on the unpacked weight."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> Any:
        ctx.save_for_backward(input, weight)
        return linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        input, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_input, of_weight, of_bias = ctx.needs_input_grad
        return (
            gradient @ weight.turn(weight) if of_input else None,
            weight.turn(rows.t() @ input.reshape(-1, input.shape[-1])) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def linear_problem(module: Any, kind: Kind = Kind.FLOAT32) -> str:
    """Why this layer is not packed; "" where it is."""
    weight = module.weight
    if isinstance(module, PackedModule) and type(weight) is module.hfaccel_weight:
        return ""  # by an earlier call, for another tree of modules that shares this layer
    dtype = str(weight.dtype).removeprefix("torch.")
    plain = packed_class(module) is not None and not isinstance(module, PackedModule)
    problems = {
        f"is a {type(module).__name__}, not a plain nn.Linear": not plain,
        f"its weight is on {weight.device.type}": not weight.is_cpu,
        f"its weight is {dtype}; float32 and bfloat16 are packed": weight.dtype not in COMPUTED,
        "its weight is not an ordinary parameter": type(weight) is not nn.Parameter,
        "its weight was made in inference mode, where parameters cannot be exchanged": weight.is_inference(),
        "its weight is in memory shared with other processes": weight.is_cpu and weight.is_shared(),
        f"narrower than {MIN_WIDTH}: torch's own path is as fast": min(weight.shape) < MIN_WIDTH,
        kernels_problem(kind): bool(kernels_problem(kind)),
    }
    return next((problem for problem, applies in problems.items() if applies), "")


def pack(module: Any, arena: Arena, kind: Kind = Kind.FLOAT32) -> str:
    """Pack the weight into `arena`. The parameter keeps its identity: optimizers and ties see it too.

    Returns why it could not be packed; "" where it was. A weight packed for another module, to which
    this one is tied, is used as it is.
    """
    weight, cls = module.weight, packed_class(module)
    assert cls is not None
    if not isinstance(weight, PackedWeight):
        try:
            with torch.inference_mode(False):  # a parameter made in inference mode could not be exchanged
                exchange(weight, cls.hfaccel_weight.pack(weight, arena, kind))
        except RuntimeError as error:
            return f"its weight cannot be exchanged ({error})"
    module.__class__ = cls
    return ""


def unpack(module: PackedModule) -> None:
    """Undo `pack`: its own class, with an ordinary weight, bit for bit the one that was packed in float32."""
    if isinstance(module.weight, PackedWeight):
        module.weight.make_dense()
    layer: nn.Module = module
    layer.__class__ = module.hfaccel_stock

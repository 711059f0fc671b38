"""Linear layers with packed weights, computed by the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.calls.code import Code, code_of
from hfaccel.engine.calls.fallback import AUTOCAST, COUNTED, TRAINS, UNPACKED, fall_back
from hfaccel.engine.calls.guards import COMPUTED, outside_graphs, stock_reason
from hfaccel.engine.kernels import Activation, Kind, kernels, kernels_problem
from hfaccel.engine.replacements import Find, Paths, Settings, register
from hfaccel.engine.weights.autocast import is_bfloat16, under_autocast
from hfaccel.engine.weights.exchange import exchange
from hfaccel.engine.weights.holder import PackedHolder
from hfaccel.engine.weights.packed import PackedWeight, TransposedWeight
from hfaccel.engine.weights.repacking import kind_of
from hfaccel.errors import HfaccelError
from hfaccel.memory import Arena
from hfaccel.replacement import original, replace, undo

# In layers narrower than this torch's own path is as fast (benchmarks/linear.py).
MIN_WIDTH = 64


def linear(
    input: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None,
    activation: Activation = Activation.NONE,
) -> torch.Tensor:
    """activation(input weight^T + bias), in the type of the input. `input`: (..., in_features), float32 or
    bfloat16."""
    rows, added = input.contiguous(), float32(bias)
    output = torch.empty((*input.shape[:-1], weight.packing.rows), dtype=input.dtype)
    kernels().linear(
        torch.get_num_threads(),
        weight.matrix(added),
        activation,
        rows.data_ptr(),
        output.data_ptr(),
        rows.numel() // weight.packing.columns,
        input.dtype is torch.bfloat16,
    )
    return output


def float32(vector: torch.Tensor | None) -> torch.Tensor | None:
    """The bias as the kernels add it. A bfloat16 bias is converted at each call, because a kept copy would
    miss changes in place."""
    return None if vector is None else vector.detach().float().contiguous()


def fits(vector: torch.Tensor | None) -> bool:
    """Whether the kernels can add this bias."""
    return vector is None or (vector.dtype in COMPUTED and vector.is_cpu)


@register
class PackedModule(PackedHolder):
    """A linear layer with a packed weight of the class `hfaccel_key`. `pack` makes one, `unpack` undoes it.

    If the weight is replaced by an ordinary one (`.to(torch.bfloat16)`, `load_state_dict(assign=True)`), the
    layer's own forward runs.
    """

    hfaccel_name = "linear"
    hfaccel_prefix = "Packed"
    hfaccel_own = (COUNTED,)
    hfaccel_code: ClassVar[Code]  # of the layer's own class
    bias: Any

    def __init_subclass__(cls, **settings: object) -> None:
        super().__init_subclass__(**settings)
        if "hfaccel_original" in vars(cls):
            cls.hfaccel_code = code_of([cls.hfaccel_original])

    @classmethod
    def hfaccel_apply(cls, module: nn.Module, settings: Settings, find: Find) -> None:
        kind = packed_class(module)
        if kind is None:
            raise ValueError(f"an nn.Linear is packed, and not a {type(module).__name__}")
        if not isinstance(module, PackedModule):
            replace(module, cls, kind)

    def hfaccel_settings(self, paths: Paths) -> Settings:
        weight = self.weight
        kind: Kind = weight.kind if isinstance(weight, PackedWeight) else kind_of(weight.dtype)
        return {"kind": kind.label}

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training and torch.compiler.is_dynamo_compiling() and type(self.weight) is nn.Parameter:
            return self._stock(input)  # what is trained is compiled as without hfaccel
        result: torch.Tensor = self._multiply(input)
        return result

    @outside_graphs
    def _multiply(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        problem = stock_reason(input)
        if type(weight) is not self.hfaccel_key:
            problem = TRAINS if self.training else problem or UNPACKED
        is_packed = isinstance(weight, PackedWeight)
        casts = is_packed and problem == AUTOCAST and is_bfloat16() and not torch.is_grad_enabled()
        if problem and not casts:
            fall_back(self, problem)
            return self._stock(input)
        if input.dim() < 1 or input.shape[-1] != weight.packing.columns or not fits(self.bias):
            return self._stock(input)  # raises torch's own error, or computes as torch does
        if not self.hfaccel_code.holds():
            fall_back(self, self.hfaccel_code.problem())
            return self._stock(input)
        if casts:
            return under_autocast(self, input, linear)
        if torch.is_grad_enabled():
            result: torch.Tensor = _Linear.apply(input, weight, self.bias)
        else:
            result = linear(input, weight, self.bias)
        return result

    def _stock(self, input: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = super().forward(input)
        return result


# What multiplies as nn.Linear does, by module and name of the class -> the class of its packed weight.
_LINEAR: dict[tuple[str, str], type[PackedWeight]] = {
    # GPT-2's, whose weight is (in_features, out_features)
    ("transformers.pytorch_utils", "Conv1D"): TransposedWeight,
    # which rounds between product and bias in bfloat16
    ("transformers.models.falcon.modeling_falcon", "FalconLinear"): PackedWeight,
}


def packed_class(module: nn.Module) -> type[PackedWeight] | None:
    """The class of this layer's weight when packed; None if this is no plain linear layer."""
    cls = original(type(module))
    return PackedWeight if cls is nn.Linear else _LINEAR.get((cls.__module__, cls.__name__))


def weight_class(module: nn.Module) -> type[PackedWeight]:
    """The same, with PackedWeight instead of None."""
    return packed_class(module) or PackedWeight


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or packed_class(module) is not None


class _Linear(torch.autograd.Function):
    """The packed GEMM where a gradient may be wanted; backward computes on the unpacked weight."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(input, weight)
        return linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        input, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_input, of_weight, of_bias = ctx.needs_input_grad
        return (
            gradient @ weight.turn(weight) if of_input else None,
            weight.turn(rows.t() @ input.reshape(-1, input.shape[-1])) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def weight_problem(weight: torch.Tensor) -> str:
    """Why a parameter cannot be packed; "" where it can."""
    if type(weight).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return "" if isinstance(weight, PackedWeight) else f"its weight is a {type(weight).__name__}"
    dtype = str(weight.dtype).removeprefix("torch.")
    problems = {
        f"its weight is on {weight.device.type}": not weight.is_cpu,
        f"its weight is {dtype}; float32 and bfloat16 are packed": weight.dtype not in COMPUTED,
        "its weight is not an ordinary parameter": type(weight) is not nn.Parameter,
        "its weight was made in inference mode, where parameters cannot be exchanged": weight.is_inference(),
        "its weight is in memory shared with other processes": weight.is_cpu and weight.is_shared(),
    }
    return next((problem for problem, applies in problems.items() if applies), "")


def linear_problem(module: Any, narrowest: int = MIN_WIDTH) -> str:
    """Why this layer is not packed; "" where it is. `narrowest`: what is worth it."""
    weight = getattr(module, "weight", None)
    if isinstance(module, PackedModule) and type(weight) is module.hfaccel_key:
        return ""  # by an earlier call, for another tree of modules that shares this layer
    if weight is None:
        return "it has no weight: a quantizer keeps its numbers in another form"
    plain = packed_class(module) is not None and not isinstance(module, PackedModule)
    problems = {
        f"is a {type(module).__name__}, not a plain nn.Linear": not plain,
        (problem := weight_problem(weight)): bool(problem),
        f"narrower than {narrowest}: torch's own path is as fast": min(weight.shape) < narrowest,
        kernels_problem(): bool(kernels_problem()),
    }
    return next((problem for problem, applies in problems.items() if applies), "")


def pack(module: Any, arena: Arena | None = None, kind: Kind = Kind.FLOAT32) -> str:
    """Pack the weight into `arena`, or into memory of its own. The parameter keeps its identity: optimizers
    and ties see it too.

    Returns why it could not be packed; "" where it was. A weight packed for another module, to which
    this one is tied, is used as it is.
    """
    weight, cls = module.weight, packed_class(module)
    assert cls is not None
    if not isinstance(weight, PackedWeight):
        try:
            with torch.inference_mode(False):  # a parameter made in inference mode could not be exchanged
                exchange(weight, cls.pack(weight, arena, kind))
        except RuntimeError as error:
            return f"its weight cannot be exchanged ({error})"
    PackedModule.hfaccel_apply(module, {}, module.get_submodule)
    return ""


def unpack(module: PackedModule) -> None:
    """Undo `pack`: the layer's own class, and an ordinary weight, bit for bit the one packed in float32."""
    unpack_all([module])


def unpack_all(modules: Sequence[PackedHolder]) -> None:
    """The same for several modules. If one cannot be unpacked, all stay packed and HfaccelError says why."""
    unpacked: list[tuple[torch.Tensor, PackedWeight]] = []
    try:
        for weight in (each for module in modules for each in module.hfaccel_weights()):
            unpacked.append((weight, weight.make_dense()))
    except (RuntimeError, MemoryError) as error:
        for parameter, packed in unpacked:
            exchange(parameter, packed)
        raise HfaccelError(
            f"restore() exchanges every packed weight, but one cannot be ({error}); the model stays as it "
            "was. Delete what refers to its parameters, or optimize a copy"
        ) from error
    for module in modules:
        undo(module)

"""Linear layers on oneDNN's GEMM, with the weight in the layout that it reads fastest.

A weight stays an ordinary parameter of shape (out_features, in_features); only its strides change: it
is stored column by column, which oneDNN's AVX-512 kernels multiply at 95 to 100 % of the rate of their
own opaque packed format (benchmarks/README.md). So there is one copy of the weight and nothing to keep
in step: ties, state_dict, in-place updates, deepcopy and pickling work as before.

The operators are torch's own (`mkldnn::_linear_pointwise`), the ones that TorchInductor emits.
"""

from __future__ import annotations

import torch
from torch import nn

from hfaccel.memory import Arena, padded

linear_pointwise = torch.ops.mkldnn._linear_pointwise.default
linear_add = torch.ops.mkldnn._linear_pointwise.binary

# Multiply-adds below which torch's own path is faster: calling into oneDNN costs 17 microseconds.
MIN_WORK = 500_000
# Layers narrower than this never reach MIN_WORK at the sizes where latency counts.
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


def stock_reason(tensor: torch.Tensor, weight: torch.Tensor) -> str:
    """Why a call with this input must take torch's own path; "" where oneDNN's may run.

    oneDNN's operators have no gradient, no other precision here, and are unknown to the tracers.
    """
    if type(tensor) is not torch.Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "traced, or given a subclass of torch.Tensor"
    if tensor.dtype is not torch.float32 or weight.dtype is not torch.float32:
        return f"computed in {str(tensor.dtype).removeprefix('torch.')}"
    if not (tensor.is_cpu and weight.is_cpu):
        return f"computed on {tensor.device.type}"
    if torch.is_grad_enabled() and (tensor.requires_grad or weight.requires_grad):
        return "gradients are enabled (use torch.inference_mode)"
    if torch.is_autocast_enabled("cpu"):
        return "under autocast"
    return ""


class PackedLinear(nn.Linear):
    """nn.Linear computed by oneDNN. An nn.Linear becomes one, and stops being one, by its class alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # One multiply-add for each input value and each output column.
        if input.numel() * self.out_features < MIN_WORK or stock_reason(input, self.weight):
            return nn.functional.linear(input, self.weight, self.bias)
        result: torch.Tensor = linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return result


class JoinedLinear(nn.Linear):
    """One of several linear layers whose weights are column blocks of one matrix in memory.

    Its weight and bias are views, so a checkpoint or a pickle would store the whole matrix for each:
    both get contiguous copies instead.
    """

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:  # type: ignore[no-untyped-def]
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("weight", "bias"):
            if destination.get(prefix + name) is not None:
                destination[prefix + name] = _compact(destination[prefix + name])

    def __getstate__(self) -> dict[str, object]:
        state = dict(super().__getstate__())
        parameters = {
            name: parameter if parameter is None else nn.Parameter(_compact(parameter), parameter.requires_grad)
            for name, parameter in self._parameters.items()
        }
        return {**state, "_parameters": parameters}


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of `tensor` in a storage of exactly its size."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def linear_problem(module: nn.Linear) -> str:
    """Why this layer is not packed; "" where it is."""
    if type(module) is not nn.Linear:
        return f"is a {type(module).__name__}, not a plain nn.Linear"
    weight = module.weight
    if weight.device.type != "cpu":
        return f"its weight is on {weight.device.type}"
    if weight.dtype is not torch.float32:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}; only float32 is packed"
    if type(weight) is not nn.Parameter or not weight.is_contiguous():
        return "its weight is not an ordinary contiguous parameter"
    if min(weight.shape) < MIN_WIDTH:
        return f"narrower than {MIN_WIDTH}: torch's own path is faster"
    return ""


def is_columnwise_better(out_features: int) -> bool:
    """Whether storing the weight column by column pays.

    With a power of two of columns the rows of a block lie a power of two of bytes apart, fall into the
    same cache sets and evict each other; oneDNN then does better with the checkpoint's layout.
    """
    return out_features & (out_features - 1) != 0


def arena_bytes(module: nn.Linear) -> int:
    columnwise = is_columnwise_better(module.out_features)
    return padded(module.weight.numel() * module.weight.element_size()) if columnwise else 0


def pack(module: nn.Linear, arena: Arena) -> None:
    """Move the weight into `arena`, column by column, and let oneDNN multiply it."""
    if is_columnwise_better(module.out_features):
        columns = arena.take((module.in_features, module.out_features))
        with torch.no_grad():
            columns.copy_(module.weight.t())
        module.weight.data = columns.t()
    module.__class__ = PackedLinear


def join(modules: tuple[nn.Linear, ...], arena: Arena) -> None:
    """Move the weights of layers that read the same input into one matrix, side by side."""
    rows, width = modules[0].in_features, sum(module.out_features for module in modules)
    columns = arena.take((rows, width))
    biases = arena.take((width,)) if modules[0].bias is not None else None
    start = 0
    for module in modules:
        end = start + module.out_features
        with torch.no_grad():
            columns[:, start:end].copy_(module.weight.t())
        module.weight.data = columns[:, start:end].t()
        if biases is not None:
            biases[start:end].copy_(module.bias.detach())
            module.bias.data = biases[start:end]
        module.__class__ = JoinedLinear
        start = end


def unpack(module: nn.Linear) -> None:
    """Undo pack or join: class and memory layout are those of nn.Linear again, values are untouched."""
    with torch.no_grad():
        if isinstance(module, JoinedLinear):
            module.weight.data = _compact(module.weight)
            if module.bias is not None:
                module.bias.data = _compact(module.bias)
        else:
            module.weight.data = module.weight.data.contiguous()
    module.__class__ = nn.Linear


def joined_matrix(modules: tuple[nn.Linear, ...]) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """The whole weight (sum of out_features, in_features) and bias of joined layers, as views.

    None where the layers do not lie side by side in memory (any more): parameters may be replaced,
    moved or cast at any time, so this looks at the memory and not at a memory of its own.
    """
    first, width = modules[0], sum(module.out_features for module in modules)
    for name in ("weight", "bias"):
        if not _are_adjacent([getattr(module, name) for module in modules]):
            return None
    if first.weight.stride() != (1, width):
        return None
    weight = first.weight.detach().as_strided((width, first.in_features), (1, width))
    bias = None if first.bias is None else first.bias.detach().as_strided((width,), (1,))
    return weight, bias


def _are_adjacent(tensors: list[torch.Tensor | None]) -> bool:
    if any(tensor is None for tensor in tensors):
        return all(tensor is None for tensor in tensors)
    present = [tensor for tensor in tensors if tensor is not None]
    storage = present[0].untyped_storage().data_ptr()
    address = present[0].data_ptr()
    for tensor in present:
        if tensor.untyped_storage().data_ptr() != storage or tensor.data_ptr() != address:
            return False
        if tensor.stride() != present[0].stride():
            return False
        address += tensor.shape[0] * tensor.element_size()
    return True

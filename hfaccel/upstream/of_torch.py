"""Private parts of torch. They are looked at when this is imported: microseconds each."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hfaccel.upstream.probe import Need, Probe

if TYPE_CHECKING:
    from torch.nn.modules.conv import _ConvNd as _ConvNd
else:
    _ConvNd = nn.Conv2d.__base__

ENGINE = (Need.ENGINE,)
KERNELS = (Need.ENGINE, Need.EXPORT)
CONVOLUTIONS = (Need.CONVOLUTIONS,)
WATCHED = (Need.LAYERS, Need.CONVOLUTIONS, Need.EXPORT)

# Modules and tensors. These attributes are used where they are needed, by these names.

TABLES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
OVERRIDDEN = ("_apply", "_save_to_state_dict")
OF_TENSORS = ("_version", "_backward_hooks", "_post_accumulate_grad_hooks")
CALL = "_call_impl"


def _has_tables(module: type[nn.Module]) -> bool:
    made = module()
    methods = all(isinstance(getattr(module, name), FunctionType) for name in OVERRIDDEN)
    return methods and all(isinstance(vars(made)[name], dict) for name in TABLES)


def _counts_changes(tensor: type[torch.Tensor]) -> bool:
    version, *hooks = OF_TENSORS
    with torch.inference_mode(False):
        made = tensor([0.0])
        before = getattr(made, version)
        made.zero_()
    return getattr(made, version) == before + 1 and all(getattr(made, each) is None for each in hooks)


MODULE = Probe(
    "torch.nn", "Module", "its tables of parameters, buffers, children and hooks", KERNELS, _has_tables
)
TENSOR = Probe("torch", "Tensor", "its version, and its tables of hooks", KERNELS, _counts_changes)
CALLED = Probe(
    "torch.nn",
    f"Module.{CALL}",
    "what a call of a module runs",
    (Need.LAYERS, Need.CONVOLUTIONS),
    lambda found: isinstance(found, FunctionType),
)

# Who sees or transforms every call


def _is_table(found: object) -> bool:
    return isinstance(found, dict)


GLOBAL_HOOKS = Probe(
    "torch.nn.modules.module", "_global_forward_hooks", "hooks of all modules", WATCHED, _is_table
)
GLOBAL_PRE_HOOKS = Probe(
    "torch.nn.modules.module",
    "_global_forward_pre_hooks",
    "hooks of all modules, before their calls",
    WATCHED,
    _is_table,
)
TRACING = Probe(
    "torch._C",
    "_get_tracing_state",
    "whether torch.jit traces",
    KERNELS,
    lambda found: found() is None or hasattr(found(), "graph"),
)
TRANSFORMS = Probe(
    "torch._C",
    "_functorch.peek_interpreter_stack",
    "whether torch.func transforms a call",
    KERNELS,
    lambda found: found() is None or hasattr(found(), "key"),
)
DUAL_LEVEL = Probe(
    "torch.autograd.forward_ad",
    "_current_level",
    "whether a call is differentiated forwards",
    KERNELS,
    lambda found: type(found) is int and found >= -1,
)

global_hooks: tuple[dict[int, Callable[..., object]], ...] = (
    GLOBAL_HOOKS.value({}),
    GLOBAL_PRE_HOOKS.value({}),
)
tracing_state = TRACING.function()
transforms = TRANSFORMS.function()
dual_level: Callable[[], int] = DUAL_LEVEL.current()

# Packed weights


class _Wrapper(torch.Tensor):
    """Has no memory of its own, as a packed weight has none."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def, override]
        return NotImplemented


def _wraps(make: Callable[..., object]) -> bool:
    made = make(_Wrapper, (2, 3), dtype=torch.float32, device=torch.device("cpu"), requires_grad=False)
    return type(made) is _Wrapper and made.shape == (2, 3)


def _swaps(swap: Callable[[torch.Tensor, torch.Tensor], object]) -> bool:
    one, two = torch.zeros(1), torch.ones(2)
    swap(one, two)
    return one.shape == (2,) and two.shape == (1,)


WRAPPER = Probe(
    "torch", "Tensor._make_wrapper_subclass", "a tensor without memory of its own", ENGINE, _wraps
)
USE_COUNT = Probe(
    "torch",
    "Tensor._use_count",
    "how many parts of torch hold a tensor",
    ENGINE,
    lambda found: found(torch.zeros(1)) == 1,
)
SWAP = Probe("torch._C", "_swap_tensor_impl", "exchanges what two tensors are", ENGINE, _swaps)
SCHEMA = Probe(
    "torch",
    "ops.aten.add_.Tensor._schema",
    "which arguments an operator writes to",
    ENGINE,
    lambda found: (
        [bool(each.alias_info and each.alias_info.is_write) for each in found.arguments[:2]] == [True, False]
    ),
)
TREE_MAP = Probe(
    "torch.utils._pytree",
    "tree_map",
    "a function of every value in nested containers",
    ENGINE,
    lambda found: found(lambda each: each + 1, (1, [2], {"a": 3})) == (2, [3], {"a": 4}),
)
TREE_LEAVES = Probe(
    "torch.utils._pytree",
    "tree_leaves",
    "every value in nested containers",
    CONVOLUTIONS,
    lambda found: found((1, [2], {"a": 3})) == [1, 2, 3],
)

make_wrapper = WRAPPER.function()
use_count: Callable[[torch.Tensor], int] = USE_COUNT.function()
swap = SWAP.function()
tree_map = TREE_MAP.function()
tree_leaves = TREE_LEAVES.function()


def schema_of(operator: Any) -> Any:
    return operator._schema


# Operators and functions in C


class _Library(Probe):
    """Of a library of torch; `module` is its file."""

    def owner(self) -> ctypes.CDLL:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / self.module))


def address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _takes(count: int) -> Callable[[Any], bool]:
    return lambda found: len(found.default._schema.arguments) == count


PARALLEL_FOR = _Library(
    "libtorch_cpu.so",
    "torch_parallel_for",
    "the C function that divides work among torch's threads",
    ENGINE,
    address,
)
REORDER = Probe(
    "torch",
    "ops.mkldnn._reorder_convolution_weight",
    "a weight in oneDNN's blocks",
    CONVOLUTIONS,
    _takes(6),
)
CONVOLUTION = Probe(
    "torch",
    "ops.mkldnn._convolution_pointwise",
    "oneDNN's convolution with an activation",
    CONVOLUTIONS,
    _takes(10),
)

reorder = REORDER.function()
convolve = CONVOLUTION.function()

"""Weights reordered for oneDNN's GEMM, in memory of our choice, and still a parameter of the model.

A packed weight is the only copy of its values. As a tensor it has the shape, type and identity of the
parameter that it replaces: linear layers multiply it as it is, and every other operation sees the
values in the ordinary layout, unpacked for that operation alone. So optimizers, ties, checkpoints,
`.to()`, deepcopy and pickling work as with any parameter.

oneDNN keeps its packed matrices in opaque tensors with memory of their own. Here they are views of an
arena's memory instead, made through torch's C interface for compiled models (AOTInductor's shim, a
stable ABI): packed weights can lie on huge pages and next to each other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from hfaccel.memory import Arena, padded

_mkldnn = torch.ops.mkldnn
_LAYOUT_MKLDNN = 3  # c10::Layout::Mkldnn


NO_ADDRESS = (
    "raw memory must be in the ordinary layout, but this weight is packed for oneDNN; "
    "use weight.detach().clone(), or hfaccel.restore(model) first"
)


PACKED_ATTRIBUTES = ("memory", "metadata", "matrix")


class _Shim:
    """The three C functions that make a tensor over given memory. Raises OSError or AttributeError
    where this torch has no such functions."""

    def __init__(self) -> None:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        self.create = library.aoti_torch_create_tensor_from_blob_v2
        self.float32: int = library.aoti_torch_dtype_float32()
        self.cpu: int = library.aoti_torch_device_type_cpu()
        self.capsule = ctypes.pythonapi.PyCapsule_New
        self.capsule.restype = ctypes.py_object
        self.capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    def view(self, memory: torch.Tensor, rows: int, columns: int, metadata: bytes) -> torch.Tensor:
        """An opaque (rows, columns) float32 tensor over `memory`, which must outlive it."""
        handle = ctypes.c_void_p()
        error = self.create(
            ctypes.c_void_p(memory.data_ptr()),
            ctypes.c_int64(2),
            (ctypes.c_int64 * 2)(rows, columns),
            (ctypes.c_int64 * 2)(columns, 1),
            ctypes.c_int64(0),
            self.float32,
            self.cpu,
            0,
            ctypes.byref(handle),
            _LAYOUT_MKLDNN,
            metadata,
            ctypes.c_int64(len(metadata)),
        )
        if error:
            raise OSError(error, "aoti_torch_create_tensor_from_blob_v2 failed")
        return torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(self.capsule(handle, None, None))


@cache
def _get_shim() -> _Shim:
    return _Shim()


def packing_problem() -> str:
    """Why weights cannot be packed with this torch; "" where they can."""
    if not torch.backends.mkldnn.is_available():
        return "this torch is built without oneDNN"
    try:
        _get_shim()
    except (OSError, AttributeError) as error:
        return f"torch {torch.__version__} lacks a function that packing needs ({error})"
    return ""


class PackedWeight(nn.Parameter):
    """A float32 (out_features, in_features) parameter whose values are stored packed.

    `memory` holds the packed bytes; `matrix` is the opaque tensor over them that oneDNN multiplies.
    """

    memory: torch.Tensor
    metadata: bytes
    matrix: torch.Tensor

    @staticmethod
    def __new__(
        cls, memory: torch.Tensor, metadata: bytes, shape: tuple[int, int], requires_grad: bool
    ) -> PackedWeight:
        self: PackedWeight = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=torch.float32, device=torch.device("cpu"), requires_grad=requires_grad
        )
        self.memory = memory
        self.metadata = metadata
        self.matrix = _get_shim().view(memory, *shape, metadata)
        self._is_param = True
        return self

    def __init__(self, *args: Any) -> None:
        pass

    @classmethod
    def pack(cls, weight: torch.Tensor, arena: Arena) -> PackedWeight:
        """Pack a dense weight (out_features, in_features) into `arena`."""
        packed = _reorder(weight)
        memory = arena.take((_mkldnn._nbytes(packed),), torch.uint8)
        _copy_bytes(packed, memory)
        return cls(memory, _metadata(packed), (weight.shape[0], weight.shape[1]), weight.requires_grad)

    def unpack(self) -> torch.Tensor:
        """The values as an ordinary contiguous tensor, bit for bit those that were packed."""
        with torch.no_grad():
            dense: torch.Tensor = self.matrix.to_dense()
        return dense

    def overwrite(self, dense: torch.Tensor) -> None:
        """Replace the values; whoever shares the memory sees the new ones."""
        _copy_bytes(_reorder(dense), self.memory)

    def move_to(self, memory: torch.Tensor) -> None:
        """Keep the values in `memory` (bytes, as many as before) from now on."""
        memory.copy_(self.memory)
        self.memory = memory
        self.matrix = _get_shim().view(memory, self.shape[0], self.shape[1], self.metadata)

    def make_dense(self) -> None:
        """Become an ordinary parameter with these values; whoever holds this one holds that."""
        with torch.inference_mode(False):
            exchange(self, nn.Parameter(self.unpack(), self.requires_grad))

    def share_memory_(self) -> PackedWeight:
        """Other processes see a weight in the ordinary layout: packed bytes mean nothing to them."""
        self.make_dense()
        return self.share_memory_()  # by now torch.Tensor's

    def alias(self, requires_grad: bool = False) -> PackedWeight:
        """Another weight over the same memory."""
        shape = (self.shape[0], self.shape[1])
        with torch.inference_mode(False):  # detach() cannot hand out a tensor made in inference mode
            return PackedWeight(self.memory, self.metadata, shape, requires_grad)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Any operation but the packed GEMM: on the dense values, written back where it changes them."""
        if func is torch.ops.aten.detach.default:
            return args[0].alias()
        dense: dict[int, torch.Tensor] = {}

        def to_dense(value: Any) -> Any:
            if not isinstance(value, PackedWeight):
                return value
            if id(value) not in dense:
                dense[id(value)] = value.unpack()
            return dense[id(value)]

        result = func(*tree_map(to_dense, args), **tree_map(to_dense, kwargs or {}))
        changed: dict[int, PackedWeight] = {}  # by the dense tensor that stood for it
        for weight in _written(func, args):
            weight.overwrite(dense[id(weight)])
            changed[id(dense[id(weight)])] = weight
        return tree_map(lambda value: changed.get(id(value), value), result)

    def __setitem__(self, index: Any, value: Any) -> None:
        """`weight[index] = value` writes through a view, which here would be one of a dense copy."""
        if torch.is_grad_enabled() and self.requires_grad:
            raise RuntimeError(
                "a leaf that requires a gradient must not be changed in place; use torch.no_grad"
            )
        dense = self.unpack()
        dense[index] = value
        self.overwrite(dense)

    # What reaches below torch's operators gets the values of a dense copy, or an error: the bytes in
    # memory are in an order that only oneDNN knows.

    def dense(self) -> torch.Tensor:
        """A copy in the ordinary layout that requires a gradient where this weight does."""
        return self.unpack().requires_grad_(self.requires_grad)

    def to_dense(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.dense()

    def numpy(self, *, force: bool = False) -> Any:
        return self.dense().numpy(force=force)

    def __array__(self, dtype: Any = None) -> Any:
        return self.dense().__array__(dtype)

    def tolist(self) -> Any:
        return self.unpack().tolist()

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.dense().__dlpack__(**kwargs)

    def data_ptr(self) -> int:
        raise RuntimeError(NO_ADDRESS)

    def untyped_storage(self) -> Any:
        raise RuntimeError(NO_ADDRESS)

    def is_shared(self) -> bool:
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        if id(self) not in memo:
            shape = (self.shape[0], self.shape[1])
            memo[id(self)] = PackedWeight(self.memory.clone(), self.metadata, shape, self.requires_grad)
        copied: PackedWeight = memo[id(self)]
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Packed bytes mean something to this oneDNN on this CPU only: pickles carry the dense values.
        return _packed_anew, (self.unpack(), self.requires_grad)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedWeight(shape={tuple(self.shape)}, requires_grad={self.requires_grad})"


def _written(func: Any, args: tuple[Any, ...]) -> Iterator[PackedWeight]:
    """The packed weights among the arguments that `func` changes in place, by its schema."""
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info and argument.alias_info.is_write:
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, PackedWeight):
                    yield item


def exchange(parameter: torch.Tensor, replacement: torch.Tensor) -> None:
    """Give `parameter` the nature and values of `replacement`, and keep its identity, gradient and what
    other code has attached to it. Raises RuntimeError where torch cannot (there are weak references)."""
    gradient = parameter.grad
    attached = {name: value for name, value in vars(parameter).items() if name not in PACKED_ATTRIBUTES}
    vars(replacement).update(attached)
    torch.utils.swap_tensors(parameter, replacement)
    parameter.grad = gradient


def _reorder(weight: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        packed: torch.Tensor = _mkldnn._reorder_linear_weight(weight.detach().contiguous())
    return packed


def _copy_bytes(packed: torch.Tensor, memory: torch.Tensor) -> None:
    ctypes.memmove(memory.data_ptr(), _mkldnn.data_ptr(packed), memory.numel())


def _metadata(packed: torch.Tensor) -> bytes:
    serialized: torch.Tensor = _mkldnn._get_mkldnn_serialized_md(packed)
    return serialized.numpy().tobytes()


def _packed_anew(dense: torch.Tensor, requires_grad: bool) -> nn.Parameter:
    """For unpickling: packed again where this machine can, otherwise an ordinary parameter."""
    parameter = nn.Parameter(dense, requires_grad)
    if packing_problem():
        return parameter
    return PackedWeight.pack(parameter, Arena(packed_bytes(dense), pages="default"))


def packed_bytes(weight: torch.Tensor) -> int:
    """What the packed weight takes up at most: oneDNN pads both sizes to multiples of its blocks."""
    rows, columns = (-(-size // 64) * 64 for size in weight.shape)
    return rows * columns * weight.element_size()


def place_side_by_side(weights: Sequence[torch.Tensor]) -> None:
    """Move packed weights into one piece of memory, as `joined` needs them. Others are left alone."""
    packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
    arena = Arena(sum(padded(weight.memory.numel()) for weight in packed), pages="default")
    for weight in packed:
        weight.move_to(arena.take((weight.memory.numel(),), torch.uint8))


def joined(weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """One opaque matrix over packed weights of one shape that lie side by side, stacked by rows.

    None where they do not lie so. oneDNN packs a matrix in panels of rows, one panel after another, so
    matrices without a partly filled panel are stacked by lying next to each other. That the oneDNN at
    hand does so is tested once for each shape.
    """
    packed = [weight for weight in weights if type(weight) is PackedWeight]
    if len(packed) < len(weights) or len({weight.shape for weight in packed}) > 1:
        return None
    address = packed[0].memory.data_ptr()
    for weight in packed:
        if weight.memory.data_ptr() != address:
            return None
        address += weight.memory.numel()
    rows, columns = packed[0].shape
    metadata = stacked_metadata(len(packed), rows, columns)
    if metadata is None:
        return None
    return _get_shim().view(packed[0].memory, len(packed) * rows, columns, metadata)


@cache
def stacked_metadata(count: int, rows: int, columns: int) -> bytes | None:
    """oneDNN's description of `count` packed (rows, columns) matrices lying side by side, read as one
    matrix; None where side by side is not how it would pack that matrix."""
    # A generator of its own: optimizing a model must not advance the program's random numbers.
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(rows, columns, generator=generator) for _ in range(count)]
    whole = _reorder(torch.cat(parts))
    nbytes = [_mkldnn._nbytes(_reorder(part)) for part in parts]
    if sum(nbytes) != _mkldnn._nbytes(whole) or any(padded(size) != size for size in nbytes):
        return None
    arena = Arena(sum(nbytes), pages="default")
    weights = [PackedWeight.pack(part, arena) for part in parts]
    matrix = _get_shim().view(weights[0].memory, count * rows, columns, _metadata(whole))
    with torch.no_grad():
        same = torch.equal(matrix.to_dense(), torch.cat(parts))
    return _metadata(whole) if same else None

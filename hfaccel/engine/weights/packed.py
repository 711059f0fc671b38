"""Weights reordered for the kernels that remain parameters of the model.

A packed weight is the only copy of its values. The tensor has the shape, type and identity of the parameter
that it replaces. Linear layers multiply the packed bytes; every other operation sees the values in the
ordinary layout, unpacked for that operation alone. So optimizers, ties, checkpoints, `.to()`, deepcopy and
pickling work as with any parameter.

Packing in float32 keeps every bit. Packing in any other kind rounds the values once; every reader then
sees the rounded values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.kernels import Kind, kernels_problem, panel
from hfaccel.engine.replacements import Arguments, Keywords
from hfaccel.engine.weights.exchange import exchange
from hfaccel.engine.weights.layout import Layout, group_scales, laid_out_anew, read, read_rows, write
from hfaccel.engine.weights.reads import ReadsDense
from hfaccel.engine.weights.sent import packed_anew, reduce_packed
from hfaccel.memory import Arena
from hfaccel.native import NativeMatrix
from hfaccel.upstream.of_torch import make_wrapper, schema_of, tree_map


class PackedWeight(ReadsDense, nn.Parameter):
    """A float32 or bfloat16 (out_features, in_features) parameter whose values are stored packed.

    `memory` holds the packed bytes, `kind` names their number format, `packing` their layout. A weight over
    equal bytes elsewhere is an equal weight (`over`).
    """

    # Attributes that are its own, and made anew where the weight is attached or exchanged.
    made_anew: ClassVar[tuple[str, ...]] = ("memory", "kind", "packing", "native")
    memory: torch.Tensor
    kind: Kind
    packing: Layout
    native: tuple[tuple[int, int], NativeMatrix] | None = None  # the last, by the places of memory and bias

    @staticmethod
    def __new__(
        cls,
        memory: torch.Tensor,
        kind: Kind | None = None,
        shape: tuple[int, ...] = (0, 0),
        dtype: torch.dtype = torch.float32,
        requires_grad: bool = True,
    ) -> Any:
        if kind is None:  # type(weight)(values, requires_grad=...), as accelerate makes another parameter
            return nn.Parameter(memory, requires_grad)
        self: PackedWeight = make_wrapper(
            cls, shape, dtype=dtype, device=torch.device("cpu"), requires_grad=requires_grad
        )
        self.memory = memory
        self.kind = kind
        self.packing = cls.layout_of(kind, shape)
        self._is_param = True
        return self

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, values: torch.Tensor) -> None:
        """Setting values (peft does, to merge safely) packs them in place of the old ones. Values of another
        type or shape make this an ordinary parameter."""
        if isinstance(values, PackedWeight) and values.memory is self.memory:
            return  # as .to() does where nothing moves
        if values.shape == self.shape and values.dtype is self.dtype and values.is_cpu:
            self.overwrite(values)
        else:
            with torch.inference_mode(False):
                exchange(self, nn.Parameter(values, self.requires_grad), self.made_anew)

    @classmethod
    def pack(
        cls,
        weight: torch.Tensor,
        arena: Arena | None = None,
        kind: Kind = Kind.FLOAT32,
        factors: torch.Tensor | None = None,
        importance: torch.Tensor | None = None,
    ) -> PackedWeight:
        """Pack a dense weight into `arena`, or into memory of its own. `factors`: (in_features,), for int8:
        factors of activations before rounding. An input with factor 0, and its weights, are not rounded. For
        kinds in groups: the scales of a weight that was rounded before (`_factors`). `importance`:
        (in_features,), for kinds in groups: how much the squared error of each input's weights counts."""
        layout = cls.layout_of(kind, weight.shape)
        with torch.inference_mode(False):  # its version says when values were changed
            room = Arena(layout.nbytes, pages="default") if arena is None else arena
            memory = room.take((layout.nbytes,), torch.uint8)
        with torch.no_grad():
            cls.fill(layout, memory, weight, factors, importance)
        return cls(memory, kind, tuple(weight.shape), weight.dtype, weight.requires_grad)

    @classmethod
    def fill(
        cls,
        layout: Layout,
        memory: torch.Tensor,
        values: torch.Tensor,
        factors: torch.Tensor | None,
        importance: torch.Tensor | None = None,
    ) -> None:
        """Write the values into new memory."""
        values = values.unpack() if isinstance(values, PackedWeight) else values
        if layout.kind is Kind.INT8:
            layout.factors(memory).copy_(torch.ones(()) if factors is None else factors)
        write(layout, cls.turn(values), memory, factors if layout.kind.is_grouped else None, importance)

    @classmethod
    def held(cls, layout: Layout, memory: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What the memory holds, in the parameter's shape."""
        return cls.turn(read(layout, memory, dtype)).contiguous()

    @classmethod
    def layout_of(cls, kind: Kind, shape: Sequence[int]) -> Layout:
        """The layout of a weight with this shape."""
        return Layout(kind, shape[0], shape[1])

    laid_out_anew = staticmethod(laid_out_anew)

    @staticmethod
    def turn(values: torch.Tensor) -> torch.Tensor:
        """From the parameter's shape to (out_features, in_features), or back."""
        return values

    @classmethod
    def attach(
        cls,
        memory: torch.Tensor,
        kind: Kind,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        panel_size: int,
        requires_grad: bool,
    ) -> nn.Parameter:
        """A weight over packed bytes from another process: an ordinary parameter where no kernel can use
        them, a copy in another layout where the kernels here need one."""
        layout = replace(cls.layout_of(kind, shape), panel=panel_size)
        if kernels_problem():
            with torch.no_grad():
                return nn.Parameter(cls.held(layout, memory, dtype), requires_grad)
        own = memory if panel_size == panel() else cls.laid_out_anew(layout, memory)
        return cls(own, kind, shape, dtype, requires_grad)

    def matrix(self, bias: torch.Tensor | None = None, rows: slice | None = None) -> NativeMatrix:
        """The native matrix of all rows, or of `rows`, which begin at a multiple of WIDEST_PANEL. The bias is
        float32."""
        if rows is not None:
            return self.packing.matrix(self.memory, bias, rows)
        places = self.memory.data_ptr(), 0 if bias is None else bias.data_ptr()
        if self.native is None or self.native[0] != places:
            self.native = places, self.packing.matrix(self.memory, bias, slice(0, self.packing.rows))
        return self.native[1]

    def unpack(self) -> torch.Tensor:
        """The values as an ordinary contiguous tensor. Packing in float32 and unpacking changes no bit."""
        with torch.no_grad():
            return self.held(self.packing, self.memory, self.dtype)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Row `id` of the values for each of the ids, which have any shape. Raises torch's own errors for
        what are no ids."""
        with torch.no_grad():
            torch.embedding(torch.zeros(1, 1).expand(self.shape[0], 1), ids)
            flat = ids.reshape(-1)
            return read_rows(self.packing, self.memory, flat, self.dtype).view(*ids.shape, self.shape[1])

    def overwrite(self, dense: torch.Tensor) -> None:
        """Replace the values, in the memory, and count a new version of it."""
        with torch.no_grad():
            write(self.packing, self.turn(dense), self.memory)
        if not self.memory.is_inference():
            torch.autograd.graph.increment_version(self.memory)

    def over(self, memory: torch.Tensor, requires_grad: bool | None = None) -> PackedWeight:
        """Another weight of this kind, shape and type over other packed bytes."""
        wanted = self.requires_grad if requires_grad is None else requires_grad
        with torch.inference_mode(False):  # detach() cannot hand out a tensor made in inference mode
            return type(self)(memory, self.kind, tuple(self.shape), self.dtype, wanted)

    def make_dense(self) -> PackedWeight:
        """Become an ordinary parameter with these values, for everybody who holds this one. Returns the
        packed weight; exchanging the two once more undoes the change."""
        with torch.inference_mode(False):
            packed: Any = nn.Parameter(self.unpack(), self.requires_grad)
            exchange(self, packed, self.made_anew)
        return packed  # type: ignore[no-any-return]

    def share_memory_(self) -> PackedWeight:
        """Move the packed bytes into memory that other processes see, as `reduce_packed` sends them."""
        if not self.memory.is_shared():
            with torch.inference_mode(False):
                self.memory = self.memory.clone().share_memory_()
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., object], types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        """Any operation but the packed GEMM runs on the dense values, which are packed again if they
        changed."""
        if func is torch.ops.aten.detach.default:
            return args[0].over(args[0].memory, requires_grad=False)
        if func is torch.ops.aten.embedding.default and isinstance(args[0], PackedWeight):
            return args[0].rows(args[1])
        dense: dict[int, torch.Tensor] = {}

        def to_dense(value: object) -> object:
            if not isinstance(value, PackedWeight):
                return value
            if id(value) not in dense:
                with torch.inference_mode(False):  # of an ordinary weight, views are no inference tensors
                    dense[id(value)] = value.unpack()
            return dense[id(value)]

        result = func(*tree_map(to_dense, args), **tree_map(to_dense, kwargs or {}))
        changed: dict[int, PackedWeight] = {}  # by the dense tensor that stood for it
        for weight in _written(func, args):
            weight.overwrite(dense[id(weight)])
            changed[id(dense[id(weight)])] = weight
        return tree_map(lambda value: changed.get(id(value), value), result)

    def __setitem__(self, index: Any, value: Any) -> None:
        """`weight[index] = value` writes through a view, which here would be a view of a dense copy."""
        if torch.is_grad_enabled() and self.requires_grad:
            raise RuntimeError(
                "a leaf that requires a gradient must not be changed in place; use torch.no_grad"
            )
        dense = self.unpack()
        dense[index] = value
        self.overwrite(dense)

    def is_shared(self) -> bool:
        return bool(self.memory.is_shared())

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        if id(self) not in memo:
            memo[id(self)] = self.over(self.memory.clone())
        copied: PackedWeight = memo[id(self)]
        return copied

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        # Another CPU may lack the kernels: pickles carry the dense values.
        return packed_anew, (self.unpack(), self.kind, self.requires_grad, self._factors(), type(self))

    def _factors(self) -> torch.Tensor | None:
        """Without them the values would be rounded once more, in other steps."""
        if self.kind.is_grouped:
            return group_scales(self.packing, self.memory)
        return self.packing.factors(self.memory).clone() if self.kind is Kind.INT8 else None

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return (
            f"{type(self).__name__}({self.kind.label}, shape={tuple(self.shape)}, "
            f"requires_grad={self.requires_grad})"
        )


class TransposedWeight(PackedWeight):
    """The same for an (in_features, out_features) parameter, as GPT-2's Conv1D has."""

    @classmethod
    def layout_of(cls, kind: Kind, shape: Sequence[int]) -> Layout:
        return Layout(kind, shape[1], shape[0])

    @staticmethod
    def turn(values: torch.Tensor) -> torch.Tensor:
        return values.t()


def _written(func: Callable[..., object], args: Arguments) -> Iterator[PackedWeight]:
    """The packed weights among the arguments that `func` changes in place, by its schema."""
    for argument, value in zip(schema_of(func).arguments, args, strict=False):
        if argument.alias_info and argument.alias_info.is_write:
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, PackedWeight):
                    yield item


for _class in (PackedWeight, TransposedWeight):
    ForkingPickler.register(_class, reduce_packed)


def packed_bytes(weight: torch.Tensor, kind: Kind = Kind.FLOAT32) -> int:
    """What a weight of nn.Linear takes up when packed."""
    return PackedWeight.layout_of(kind, weight.shape).nbytes

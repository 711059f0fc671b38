"""Weights reordered for the kernels, in memory of our choice, and still parameters of the model.

A packed weight is the only copy of its values. As a tensor it has the shape, type and identity of the
parameter that it replaces: linear layers multiply it as it is, and every other operation sees the
values in the ordinary layout, unpacked for that operation alone. So optimizers, ties, checkpoints,
`.to()`, deepcopy and pickling work as with any parameter.

Packed in float32 the values keep every bit. In bfloat16 and int8 they are rounded once, when packed, and
what others see are the rounded values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from hfaccel.apply.children import share_cores
from hfaccel.engine.kernels import Kind, kernels, kernels_problem, panel
from hfaccel.engine.weights.exchange import exchange
from hfaccel.memory import Arena
from hfaccel.native import NativeMatrix

WORD = 4  # bytes
EXACT = 4  # inputs of an int8 weight that may be left unrounded (native/kernels/gemm.h)

NO_ADDRESS = (
    "raw memory must be in the ordinary layout, but this weight is packed for hfaccel's kernels; "
    "use weight.detach().clone(), or hfaccel.restore(model) first"
)

PACKED_ATTRIBUTES = ("memory", "kind", "packing", "native")


@dataclass(frozen=True)
class Layout:
    """Where in its memory a packed (rows, columns) weight keeps what."""

    kind: Kind
    rows: int  # out_features: the kernels' columns
    columns: int  # in_features
    panel: int = field(default_factory=panel)  # rows that lie together: as the kernels in use read them

    @property
    def panels(self) -> int:
        return -(-self.rows // self.panel)

    @property
    def words(self) -> int:
        """Of one row."""
        return -(-self.columns // self.kind.numbers)

    @property
    def panel_bytes(self) -> int:
        return self.panels * self.words * self.panel * WORD

    @property
    def nbytes(self) -> int:
        if self.kind is not Kind.INT8:
            return self.panel_bytes
        return self.panel_bytes + ((2 + EXACT) * self.panels * self.panel + self.columns + EXACT) * WORD

    def panels_of(self, memory: torch.Tensor) -> torch.Tensor:
        """(panels, panel, words) of int32: row by row, as a view of the memory."""
        words = memory[: self.panel_bytes].view(torch.int32)
        return words.view(self.panels, self.words, self.panel).transpose(1, 2)

    def numbers_of_rows(self, memory: torch.Tensor) -> torch.Tensor:
        """(2, rows) of float32, int8 only: the scale of each row, and the sum of its (rounded) values."""
        end = self.panel_bytes + 2 * self.panels * self.panel * WORD
        numbers = memory[self.panel_bytes : end].view(torch.float32)
        return numbers.view(2, self.panels * self.panel)[:, : self.rows]

    def factors(self, memory: torch.Tensor) -> torch.Tensor:
        """(columns,) of float32, int8 only: what activations are multiplied with, and weights divided by."""
        start = self.factors_start
        return memory[start : start + self.columns * WORD].view(torch.float32)

    @property
    def factors_start(self) -> int:
        """In bytes."""
        return self.panel_bytes + 2 * self.panels * self.panel * WORD

    def exact(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int8 only: inputs whose factor is 0, which are not rounded; (EXACT,) of int32, all -1 where there
        are none. And their weights, (EXACT, rows) of float32; 0 where there are fewer."""
        start = self.factors_start + self.columns * WORD
        weights = memory[start : self.nbytes - EXACT * WORD].view(torch.float32)
        inputs = memory[self.nbytes - EXACT * WORD : self.nbytes].view(torch.int32)
        return inputs, weights.view(EXACT, self.panels * self.panel)[:, : self.rows]

    def matrix(self, memory: torch.Tensor, bias: torch.Tensor | None, rows: slice) -> NativeMatrix:
        """Some rows of the weight, from a multiple of WIDEST_PANEL on."""
        start, stop = rows.start, rows.stop
        address = memory.data_ptr()
        panels = address + start * self.words * WORD
        added = 0 if bias is None else bias.data_ptr() + start * WORD
        if self.kind is not Kind.INT8:
            return kernels().Matrix(self.kind, stop - start, self.columns, panels, added)
        scales = address + self.panel_bytes + start * WORD
        sums = scales + self.panels * self.panel * WORD
        factors = address + self.factors_start
        exact = exact_inputs = 0
        if int(self.exact(memory)[0][0]) >= 0:
            exact, exact_inputs = factors + self.columns * WORD, address + self.nbytes - EXACT * WORD
            assert (start, stop) == (0, self.rows), "parts of a weight share their inputs, which are rounded"
        of_int8 = scales, sums, factors, exact, exact_inputs
        return kernels().Matrix(self.kind, stop - start, self.columns, panels, added, of_int8)


def write(layout: Layout, dense: torch.Tensor, memory: torch.Tensor) -> None:
    """Pack the (rows, columns) weight into `memory`."""
    words = _words(layout, dense, memory)
    _write_words(layout, words, memory)


def _write_words(layout: Layout, words: torch.Tensor, memory: torch.Tensor) -> None:
    panels, size = layout.panels_of(memory), layout.panel
    whole = layout.rows // size
    panels[:whole].copy_(words[: whole * size].view(whole, size, layout.words))
    if whole < layout.panels:
        panels[whole].zero_()
        panels[whole, : layout.rows - whole * size].copy_(words[whole * size :])


def _read_words(layout: Layout, memory: torch.Tensor) -> torch.Tensor:
    """(rows, words) of int32."""
    rows = layout.panels_of(memory).reshape(layout.panels * layout.panel, layout.words)
    return rows[: layout.rows].contiguous()


def laid_out_anew(layout: Layout, memory: torch.Tensor) -> torch.Tensor:
    """The same numbers, to the bit, in the layout of the kernels in use."""
    here = replace(layout, panel=panel())
    result = torch.zeros(here.nbytes, dtype=torch.uint8)
    _write_words(here, _read_words(layout, memory), result)
    if layout.kind is Kind.INT8:
        here.numbers_of_rows(result).copy_(layout.numbers_of_rows(memory))
        here.factors(result).copy_(layout.factors(memory))
        for mine, theirs in zip(here.exact(result), layout.exact(memory), strict=True):
            mine.copy_(theirs)
    return result


def _words(layout: Layout, dense: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """(rows, words) of int32: the numbers in the layout's kind."""
    values = dense.detach()
    if layout.kind is Kind.INT8:
        values = _rounded_part(layout, values.float(), memory)
        scales = values.abs().amax(1).clamp_(min=torch.finfo(torch.float32).tiny) / 127
        numbers = (values / scales[:, None]).round_().to(torch.int8)
        table = layout.numbers_of_rows(memory)
        table[0].copy_(scales)
        table[1].copy_(numbers.sum(1, dtype=torch.int32) * scales)
    else:
        numbers = values.to(torch.bfloat16 if layout.kind is Kind.BFLOAT16 else torch.float32)
    padding = layout.words * layout.kind.numbers - layout.columns
    if padding:
        numbers = nn.functional.pad(numbers, (0, padding))
    return numbers.contiguous().view(torch.int32)


def _rounded_part(layout: Layout, values: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """The values divided by the factors; without those that are kept as they are."""
    factors = layout.factors(memory)
    exact = (factors == 0).nonzero().flatten()
    if len(exact) > EXACT:
        raise ValueError(f"at most {EXACT} factors may be 0, but {len(exact)} are; use factors above 0")
    inputs, weights = layout.exact(memory)
    weights.zero_()
    inputs.fill_(0 if len(exact) else -1)
    inputs[: len(exact)] = exact.int()
    weights[: len(exact)] = values[:, exact].t()
    return torch.where(factors == 0, 0.0, values / factors)


def read(layout: Layout, memory: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight in the ordinary layout."""
    words = _read_words(layout, memory)
    types = {Kind.FLOAT32: torch.float32, Kind.BFLOAT16: torch.bfloat16, Kind.INT8: torch.int8}
    numbers = words.view(types[layout.kind])[:, : layout.columns]
    if layout.kind is Kind.INT8:
        scales = layout.numbers_of_rows(memory)[0]
        values = numbers * scales[:, None] * layout.factors(memory)
        inputs, weights = layout.exact(memory)
        if int(inputs[0]) >= 0:
            values.index_add_(1, inputs, weights.t())
        return values.to(dtype)
    return numbers.to(dtype).contiguous()


class PackedWeight(nn.Parameter):
    """A float32 or bfloat16 (out_features, in_features) parameter whose values are stored packed.

    `memory` holds the packed bytes; `kind` says in which numbers, `packing` where. They are all there is to
    it: who puts equal bytes elsewhere has an equal weight (`over`).
    """

    memory: torch.Tensor
    kind: Kind
    packing: Layout
    native: tuple[tuple[int, int], NativeMatrix] | None = None  # the last, by the places of memory and bias

    @staticmethod
    def __new__(
        cls,
        memory: torch.Tensor,
        kind: Kind | None = None,
        shape: tuple[int, int] = (0, 0),
        dtype: torch.dtype = torch.float32,
        requires_grad: bool = True,
    ) -> Any:
        if kind is None:  # type(weight)(values, requires_grad=...), as accelerate makes another parameter
            return nn.Parameter(memory, requires_grad)
        self: PackedWeight = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=torch.device("cpu"), requires_grad=requires_grad
        )
        self.memory = memory
        self.kind = kind
        self.packing = cls.layout_of(kind, shape)
        self._is_param = True
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, values: torch.Tensor) -> None:
        """Values that are set, as peft does to merge safely, are packed in place of the old; those of another
        type or shape make this an ordinary parameter."""
        if isinstance(values, PackedWeight) and values.memory is self.memory:
            return  # as .to() does where nothing moves
        if values.shape == self.shape and values.dtype is self.dtype and values.is_cpu:
            self.overwrite(values)
        else:
            with torch.inference_mode(False):
                exchange(self, nn.Parameter(values, self.requires_grad), PACKED_ATTRIBUTES)

    @classmethod
    def pack(
        cls,
        weight: torch.Tensor,
        arena: Arena,
        kind: Kind = Kind.FLOAT32,
        factors: torch.Tensor | None = None,
    ) -> PackedWeight:
        """Pack a dense weight into `arena`. `factors`: (in_features,), for int8:
        what activations are multiplied with before they are rounded; 0: these, and the weights that multiply
        them, are not rounded."""
        layout = cls.layout_of(kind, weight.shape)
        with torch.inference_mode(False):  # its version says when values were changed
            memory = arena.take((layout.nbytes,), torch.uint8)
        with torch.no_grad():
            if kind is Kind.INT8:
                layout.factors(memory).copy_(torch.ones(()) if factors is None else factors)
            write(layout, cls.turn(weight), memory)
        return cls(memory, kind, (weight.shape[0], weight.shape[1]), weight.dtype, weight.requires_grad)

    @staticmethod
    def layout_of(kind: Kind, shape: Sequence[int]) -> Layout:
        """Of a weight with this shape."""
        return Layout(kind, shape[0], shape[1])

    @staticmethod
    def turn(values: torch.Tensor) -> torch.Tensor:
        """From the parameter's shape to (out_features, in_features), or back."""
        return values

    @classmethod
    def attach(
        cls,
        memory: torch.Tensor,
        kind: Kind,
        shape: tuple[int, int],
        dtype: torch.dtype,
        panel_size: int,
        requires_grad: bool,
    ) -> nn.Parameter:
        """Of packed bytes that another process made. An ordinary parameter where no kernel can use them; a
        copy in another layout where the kernels here read another."""
        layout = replace(cls.layout_of(kind, shape), panel=panel_size)
        if kernels_problem():
            with torch.no_grad():
                return nn.Parameter(cls.turn(read(layout, memory, dtype)).contiguous(), requires_grad)
        own = memory if panel_size == panel() else laid_out_anew(layout, memory)
        return cls(own, kind, shape, dtype, requires_grad)

    def matrix(self, bias: torch.Tensor | None = None, rows: slice | None = None) -> NativeMatrix:
        """What the kernels multiply: all rows, or those from a multiple of WIDEST_PANEL on. The bias is
        float32."""
        if rows is not None:
            return self.packing.matrix(self.memory, bias, rows)
        places = self.memory.data_ptr(), 0 if bias is None else bias.data_ptr()
        if self.native is None or self.native[0] != places:
            self.native = places, self.packing.matrix(self.memory, bias, slice(0, self.packing.rows))
        return self.native[1]

    def unpack(self) -> torch.Tensor:
        """The values as an ordinary contiguous tensor; packed in float32, bit for bit those of before."""
        with torch.no_grad():
            return self.turn(read(self.packing, self.memory, self.dtype)).contiguous()

    def overwrite(self, dense: torch.Tensor) -> None:
        """Replace the values; whoever shares the memory sees the new ones, and its version says so."""
        with torch.no_grad():
            write(self.packing, self.turn(dense), self.memory)
        if not self.memory.is_inference():
            torch.autograd.graph.increment_version(self.memory)

    def over(self, memory: torch.Tensor, requires_grad: bool | None = None) -> PackedWeight:
        """Another weight of this kind, shape and type over packed bytes that lie elsewhere."""
        wanted = self.requires_grad if requires_grad is None else requires_grad
        with torch.inference_mode(False):  # detach() cannot hand out a tensor made in inference mode
            return type(self)(memory, self.kind, (self.shape[0], self.shape[1]), self.dtype, wanted)

    def make_dense(self) -> PackedWeight:
        """Become an ordinary parameter with these values; whoever holds this one holds that. Returns what is
        packed still: exchanged once more, the two are what they were."""
        with torch.inference_mode(False):
            packed: Any = nn.Parameter(self.unpack(), self.requires_grad)
            exchange(self, packed, PACKED_ATTRIBUTES)
        return packed  # type: ignore[no-any-return]

    def share_memory_(self) -> PackedWeight:
        """Move the packed bytes into memory that other processes see, as `reduce_packed` sends them."""
        if not self.memory.is_shared():
            with torch.inference_mode(False):
                self.memory = self.memory.clone().share_memory_()
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Any operation but the packed GEMM: on the dense values, written back where it changes them."""
        if func is torch.ops.aten.detach.default:
            return args[0].over(args[0].memory, requires_grad=False)
        dense: dict[int, torch.Tensor] = {}

        def to_dense(value: Any) -> Any:
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
        """`weight[index] = value` writes through a view, which here would be one of a dense copy."""
        if torch.is_grad_enabled() and self.requires_grad:
            raise RuntimeError(
                "a leaf that requires a gradient must not be changed in place; use torch.no_grad"
            )
        dense = self.unpack()
        dense[index] = value
        self.overwrite(dense)

    # What reaches below torch's operators gets the values of a dense copy, or an error: the bytes in
    # memory are in the kernels' order.

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
        return bool(self.memory.is_shared())

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        if id(self) not in memo:
            memo[id(self)] = self.over(self.memory.clone())
        copied: PackedWeight = memo[id(self)]
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Another CPU may lack the kernels: pickles carry the dense values.
        return _packed_anew, (self.unpack(), self.kind, self.requires_grad, self._factors(), type(self))

    def _factors(self) -> torch.Tensor | None:
        """Without them the values would be rounded once more, in other steps."""
        return self.packing.factors(self.memory).clone() if self.kind is Kind.INT8 else None

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return (
            f"{type(self).__name__}({self.kind.label}, shape={tuple(self.shape)}, "
            f"requires_grad={self.requires_grad})"
        )


class TransposedWeight(PackedWeight):
    """The same for an (in_features, out_features) parameter, as GPT-2's Conv1D has."""

    @staticmethod
    def layout_of(kind: Kind, shape: Sequence[int]) -> Layout:
        return Layout(kind, shape[1], shape[0])

    @staticmethod
    def turn(values: torch.Tensor) -> torch.Tensor:
        return values.t()


def _written(func: Any, args: tuple[Any, ...]) -> Iterator[PackedWeight]:
    """The packed weights among the arguments that `func` changes in place, by its schema."""
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info and argument.alias_info.is_write:
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, PackedWeight):
                    yield item


def _packed_anew(
    dense: torch.Tensor,
    kind: Kind,
    requires_grad: bool,
    factors: torch.Tensor | None,
    cls: type[PackedWeight] = PackedWeight,
) -> nn.Parameter:
    """For unpickling: packed again where this machine can, otherwise an ordinary parameter."""
    parameter = nn.Parameter(dense, requires_grad)
    if kernels_problem():
        return parameter
    arena = Arena(cls.layout_of(kind, dense.shape).nbytes, pages="default")
    return cls.pack(parameter, arena, kind, factors)


def reduce_packed(weight: PackedWeight) -> Any:
    """For multiprocessing's pickler, which moves what is sent into shared memory, as of any tensor."""
    attached = {name: value for name, value in vars(weight).items() if name not in PACKED_ATTRIBUTES}
    shape = (weight.shape[0], weight.shape[1])
    memory, panel_size = weight.share_memory_().memory, weight.packing.panel
    packed = memory, weight.kind, shape, weight.dtype, panel_size, weight.requires_grad
    return _attached, (type(weight), packed, attached)


def _attached(cls: type[PackedWeight], packed: tuple[Any, ...], attached: dict[str, Any]) -> nn.Parameter:
    """In the process that gets the weight."""
    share_cores()
    weight = cls.attach(*packed)
    vars(weight).update(attached)
    return weight


for _class in (PackedWeight, TransposedWeight):
    ForkingPickler.register(_class, reduce_packed)


def packed_bytes(weight: torch.Tensor, kind: Kind = Kind.FLOAT32) -> int:
    """What a weight of nn.Linear takes up when packed."""
    return PackedWeight.layout_of(kind, weight.shape).nbytes

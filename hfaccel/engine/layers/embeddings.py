"""Embeddings of words, positions and types and their norm in one pass over memory instead of several.

The module's own forward runs on a shadow of the module. There an embedding only notes its ids, sums collect
these notes, and the norm computes the result. So this module need not know how a model counts positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from itertools import zip_longest
from operator import add
from typing import Any

import torch
from torch import nn

from hfaccel.engine.calls.code import trust, trusted
from hfaccel.engine.calls.fallback import COUNTED, fall_back
from hfaccel.engine.calls.guards import is_watched
from hfaccel.engine.calls.trials import difference
from hfaccel.engine.kernels import kernels
from hfaccel.engine.norms import NormKind, native_norm, norm_kind
from hfaccel.engine.replacements import Arguments, Keywords, ModuleReplacement, register
from hfaccel.native import NativeEmbedding
from hfaccel.replacement import shadow
from hfaccel.upstream import Need, problem
from hfaccel.upstream.of_torch import tree_map

MOST = 8  # summands: MOST_TABLES of native/kernels/embed.h
# Python looks these methods up in the class of a value, not by __getattr__.
OPERATORS = ("__sub__", "__mul__", "__truediv__", "__matmul__", "__neg__", "__getitem__", "__len__")


@register
class FusedEmbeddings(ModuleReplacement):
    """A module that looks up embeddings, adds them and applies a norm, all in one pass."""

    hfaccel_name = "embeddings"
    hfaccel_prefix = "Fused"
    hfaccel_own = (COUNTED,)

    def forward(self, *args: object, **kwargs: object) -> object:
        if self.training or torch.is_grad_enabled() or is_watched():
            return super().forward(*args, **kwargs)
        code = trusted(self.children())
        if not code.holds():
            fall_back(self, code.problem())
            return super().forward(*args, **kwargs)
        return self.hfaccel_original.forward(shadow(self, _stand_ins(self)), *args, **kwargs)


class EmbeddingStandIn:
    """Stands in for an embedding. A call only notes the ids."""

    def __init__(self, embedding: nn.Embedding) -> None:
        self.embedding = embedding

    def __call__(self, ids: torch.Tensor) -> Sum:
        return Sum([(self.embedding, ids)])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.embedding, name)


class Sum:
    """The sum of some embeddings, (batch, length, size), not computed yet. Any operation but addition
    computes it."""

    def __init__(self, summands: list[tuple[nn.Embedding, torch.Tensor]]) -> None:
        self.summands = summands

    def __add__(self, other: Any) -> object:
        return Sum(self.summands + other.summands) if isinstance(other, Sum) else self.whole() + other

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., object],
        types: object,
        args: Arguments = (),
        kwargs: Keywords | None = None,
    ) -> object:
        args, kwargs = tree_map(lambda each: each.whole() if isinstance(each, cls) else each, (args, kwargs))
        return function(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> object:
        return getattr(self.whole(), name)

    @property
    def shape(self) -> torch.Size:
        ids = _broadcast([ids.shape for _, ids in self.summands])
        if ids is None:  # more tokens than positions: let torch's addition raise its error
            return self.whole().shape
        return torch.Size((*ids, self.summands[0][0].embedding_dim))

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def whole(self) -> torch.Tensor:
        """The sum, computed by torch, with torch's errors."""
        total: torch.Tensor = reduce(add, (embedding(ids) for embedding, ids in self.summands))
        return total


def _of_whole(name: str) -> Callable[..., object]:
    return lambda self, *others: getattr(self.whole(), name)(*others)


for _name in OPERATORS:
    setattr(Sum, _name, _of_whole(_name))


class NormStandIn:
    """Stands in for a norm. A call with a Sum computes the sum and its norm in one pass."""

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm
        self.sums: list[Sum] = []  # computed by the kernel

    def __call__(self, value: object) -> object:
        if not isinstance(value, Sum):
            return self.norm(value)
        shape = value.shape
        result = None if sum_problem(value, shape, self.norm) else embed(value, shape, self.norm)
        if result is None:
            return self.norm(value.whole())
        self.sums.append(value)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.norm, name)


def sum_problem(value: Sum, shape: torch.Size, norm: nn.Module) -> str:
    """Why the kernel cannot compute the norm of this sum, which has this shape; "" if it can."""
    *leading, size = shape
    for vector in norm._parameters.values():
        if vector is not None and (vector.dtype is not torch.float32 or vector.shape != (size,)):
            return "the norm is not over the last dimension, or not in float32"
    if len(value.summands) > MOST or len(leading) != 2 or 0 in leading:
        return f"{len(value.summands)} embeddings of the shape {tuple(shape)}"
    allowed = ((*leading,), (1, leading[1]))
    for embedding, ids in value.summands:
        table = embedding.weight
        if table.dtype is not torch.float32 or table.shape[1] != size or not table.is_contiguous():
            return f"a table of {table.dtype}, {tuple(table.shape)}"
        if type(table) not in (nn.Parameter, torch.Tensor) or not table.is_cpu or not ids.is_cpu:
            return f"a table that is a {type(table).__name__} on {table.device.type}"
        if ids.dtype is not torch.int64 or ids.shape not in allowed:
            return f"ids of {ids.dtype}, {tuple(ids.shape)}"
    return ""


def embed(value: Sum, shape: torch.Size, norm: nn.Module) -> torch.Tensor | None:
    """The norm of a sum without a problem (`sum_problem`); None if an id is outside of its table."""
    output = torch.empty(shape, dtype=torch.float32)
    ids = [_once(ids) for _, ids in value.summands]
    done = kernels().embed(
        torch.get_num_threads(),
        native_embedding(norm, [embedding for embedding, _ in value.summands]),
        tuple([(each.data_ptr(), each.numel()) for each in ids]),
        output.data_ptr(),
        shape[0] * shape[1],
    )
    return output if done else None


def native_embedding(norm: nn.Module, embeddings: list[nn.Embedding]) -> NativeEmbedding:
    """The kernels' object for the sum of some embeddings and its norm."""
    tables = [embedding.weight for embedding in embeddings]
    return kernels().Embedding(
        tables[0].shape[1],
        native_norm(norm, lambda vector, _: vector),
        tuple([(table.data_ptr(), table.shape[0]) for table in tables]),
    )


def _broadcast(shapes: list[torch.Size]) -> tuple[int, ...] | None:
    """The result of torch.broadcast_shapes, which takes 40 microseconds; None where it would raise."""
    sizes = []
    for column in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        several = set(column) - {1} or {1}
        if len(several) > 1:
            return None
        sizes.append(several.pop())
    return tuple(reversed(sizes))


def _once(ids: torch.Tensor) -> torch.Tensor:
    """Only one row if all rows are the same memory, as in an expanded tensor."""
    return ids[:1].contiguous() if ids.stride(0) == 0 else ids.contiguous()


def _stand_ins(module: nn.Module) -> dict[str, object]:
    """Stand-ins for the present children: since the last call, one may have been replaced or got a hook."""
    result: dict[str, object] = {}
    for name, child in module._modules.items():
        if child is None:
            continue
        if child._forward_hooks or child._forward_pre_hooks or "forward" in vars(child):
            return {}  # a hook or a foreign forward must see tensors
        if type(child) is nn.Embedding and child.max_norm is None:
            result[name] = EmbeddingStandIn(child)
        elif norm_kind(child) in (NormKind.LAYER, NormKind.RMS):
            result[name] = NormStandIn(child)
        elif type(child) is nn.Dropout and not child.training:
            result[name] = _same
    return result


def _same(value: object) -> object:
    return value


def embeddings_of(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """The modules that look up embeddings and apply a norm, by path, each with the reason why they cannot do
    so in one pass ("" if they can)."""
    return [
        (path, module, problem(Need.LAYERS) or _trial(module))
        for path, module in model.named_modules()
        if _has_parts(module)
    ]


def summed(module: nn.Module, args: Arguments, kwargs: Keywords) -> tuple[Sum, nn.Module]:
    """The sum that a module of fused embeddings computes for these arguments, and its norm."""
    assert isinstance(module, FusedEmbeddings)
    stand_ins = _stand_ins(module)
    with torch.inference_mode():
        module.hfaccel_original.forward(shadow(module, stand_ins), *args, **kwargs)
    norm = next(each for each in stand_ins.values() if isinstance(each, NormStandIn))
    return norm.sums[0], norm.norm


def _has_parts(module: nn.Module) -> bool:
    if (
        isinstance(module, ModuleReplacement)
        or hasattr(module, "save_pretrained")
        or "forward" in vars(module)
    ):
        return False
    kinds = [type(each) for each in _stand_ins(module).values()]
    return EmbeddingStandIn in kinds and kinds.count(NormStandIn) == 1


def _trial(module: nn.Module) -> str:
    """Run the module's forward both ways on random ids; "" if the results agree."""
    stand_ins = _stand_ins(module)
    kinds = EmbeddingStandIn, NormStandIn
    first, norm = (next(each for each in stand_ins.values() if isinstance(each, kind)) for kind in kinds)
    ids = torch.randint(first.num_embeddings, (2, 8), generator=torch.Generator().manual_seed(0))
    ids[1, 5:] = first.padding_idx or 0  # positions may be counted without padding
    with torch.inference_mode():
        try:
            expected, got = (each.forward(ids) for each in (module, shadow(module, stand_ins)))
        except Exception as error:  # noqa: BLE001 (whatever a foreign forward raises is the reason)
            return f"its forward cannot be called with ids alone ({type(error).__name__}: {error})"
    if not norm.sums:
        return "its norm is not given a sum of embeddings in float32"
    if not isinstance(expected, torch.Tensor):
        return f"its forward returns a {type(expected).__name__}"
    problem = difference(expected, got)
    if not problem:
        trust(module.children())
    return problem

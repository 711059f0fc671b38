"""The addresses of a fast path's parts for the kernels: tables, their norm, and the pooler."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from hfaccel.engine.calls.snapshot import Held, Snapshot
from hfaccel.engine.kernels import kernels
from hfaccel.engine.layers.embeddings import Sum, native_embedding, sum_problem
from hfaccel.engine.models.fast_path import FastPath, Source
from hfaccel.engine.norms import EPSILONS, NormKind, norm_kind
from hfaccel.engine.weights.linear import PackedModule
from hfaccel.engine.weights.packed import PackedWeight


class Places:
    """Native objects of a fast path's parts, and a check that the parts have not moved."""

    def __init__(self, fast_path: FastPath) -> None:
        self.lookups, self.pooler = fast_path.lookups, fast_path.pooler
        self.size = fast_path.lookups[0].table.embedding_dim
        tables, norm = [lookup.table for lookup in fast_path.lookups], fast_path.norm
        held: list[Held] = [(vars(table), "max_norm", vars(table).get("max_norm")) for table in tables]
        held += ((vars(norm), name, vars(norm).get(name)) for name in EPSILONS)
        modules: list[nn.Module] = [*tables, norm]
        self.problem = _parts_problem(tables, norm)
        if not self.problem:
            self.embedding = native_embedding(norm, tables)
        if self.pooler is not None:
            linear = self.pooler.linear
            modules.append(linear)
            if _is_packed(linear):
                self.matrix, self.pooled = linear.weight.matrix(linear.bias), linear.weight.packing.rows
                held.append((vars(linear.weight), "memory", linear.weight.memory))
            else:
                self.problem = "the pooler is not packed, or not in float32"
        parameters = [
            (each._parameters, name, value) for each in modules for name, value in each._parameters.items()
        ]
        plain = (value for *_, value in parameters if value is not None and type(value) is not PackedWeight)
        self.unchanged = Snapshot([*held, *parameters], (), plain)

    def embed(self, ids: torch.Tensor, types: torch.Tensor | None, output: torch.Tensor) -> bool:
        """Fill `output` (batch, length, size). Returns False if an id is outside of its table."""
        length = ids.shape[1]
        numbers = {Source.IDS: ids, Source.TYPES: _counted(0, 1) if types is None else types}
        used = [
            _counted(each.first, length) if each.source is Source.POSITIONS else numbers[each.source]
            for each in self.lookups
        ]
        return kernels().embed(
            torch.get_num_threads(),
            self.embedding,
            tuple([(each.data_ptr(), each.numel()) for each in used]),
            output.data_ptr(),
            ids.numel(),
        )

    def pool(self, hidden: torch.Tensor, output: torch.Tensor) -> None:
        """Fill `output` (batch, size) from the first tokens of `hidden` (batch, length, size)."""
        first = hidden if len(hidden) == 1 else hidden[:, 0].contiguous()
        assert self.pooler is not None
        kernels().linear(
            torch.get_num_threads(),
            self.matrix,
            self.pooler.activation,
            first.data_ptr(),
            output.data_ptr(),
            len(hidden),
        )


def _parts_problem(tables: list[nn.Embedding], norm: nn.Module) -> str:
    """Why the kernel cannot compute these lookups and their norm; "" if it can."""
    for table in tables:
        if type(table) is not nn.Embedding or table.max_norm is not None or "weight" not in table._parameters:
            return "a table is not a plain nn.Embedding"
    if norm_kind(norm) not in (NormKind.LAYER, NormKind.RMS):
        return "the norm was replaced"
    one = Sum([(table, _counted(0, 1)) for table in tables])
    return sum_problem(one, torch.Size((1, 1, tables[0].embedding_dim)), norm)


def _is_packed(linear: PackedModule) -> bool:
    """Whether weight and bias are the layer's own parameters, in the form that the kernels take."""
    weight, bias = linear.weight, linear.bias
    own = {"weight", "bias"} <= linear._parameters.keys()
    return own and type(weight) is PackedWeight and (bias is None or bias.dtype is torch.float32)


@lru_cache(maxsize=64)
def _counted(first: int, length: int) -> torch.Tensor:
    """(1, length): first, first + 1, ..."""
    with torch.inference_mode(False):
        return torch.arange(first, first + length)[None]

"""Distances between tokens in disentangled attention (DeBERTa, He et al. 2021, arXiv:2006.03654), in the form
that the kernels take (native/kernels/relative.h).

Distances fall into buckets, and each bucket has a key and a query in every head: projections of embeddings
that all layers share. These do not depend on the text, and projecting them is more work than projecting a
short text. So they are projected once, and again when an embedding or a weight has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hfaccel.engine.kernels import Kind, kernels, panel
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.native import NativeRelative

LEAST_REACH = 128  # tokens


def bucket_index(relative: torch.Tensor, length: int, span: int) -> torch.Tensor | str:
    """(2 length - 1,) int32: the bucket of each difference key - query, from 1 - length on, counted from the
    last bucket; or why `relative`, (..., query, key), cannot be expressed this way."""
    if relative.dim() < 2 or relative.shape[-2:] != (length, length) or relative.numel() != length * length:
        return f"the relative positions have the shape {tuple(relative.shape)}"
    distances = relative.reshape(length, length)
    if not torch.equal(distances[1:, 1:], distances[:-1, :-1]):
        return "the relative positions do not depend on the distance alone"
    by_key = torch.cat([distances[1:, 0].flip(0), distances[0]])  # of key - query
    if not torch.equal(by_key.flip(0), -by_key):
        return "the relative positions to the left and to the right are not opposite"
    with torch.inference_mode(False):
        return (span - 1 - by_key.clone()).clamp(0, 2 * span - 1).int()


@dataclass(frozen=True, eq=False)
class Stamp:
    """Detects whether the values of a parameter have changed."""

    held: torch.Tensor
    version: int
    copy: torch.Tensor | None = None

    @classmethod
    def of(cls, parameter: torch.Tensor) -> Stamp:
        if isinstance(parameter, PackedWeight):
            memory = parameter.memory  # the values change only through this tensor
            return cls(memory, -1 if memory.is_inference() else memory._version)
        return cls(parameter, 0, parameter.detach().clone())

    def holds(self, parameter: torch.Tensor) -> bool:
        if isinstance(parameter, PackedWeight):
            return parameter.memory is self.held and self.version >= 0 and self.held._version == self.version
        return self.copy is not None and torch.equal(parameter, self.copy)


@dataclass(frozen=True, eq=False)
class Buckets:
    """Keys and queries of all buckets, from the last one on, or None: (heads, panels, words, panel) of int32.
    They were computed from `embeddings` and from the parameters of `stamps`."""

    embeddings: torch.Tensor
    stamps: tuple[Stamp, ...]
    keys: torch.Tensor | None
    queries: torch.Tensor | None
    count: int

    def native(self, index: torch.Tensor, reach: int) -> NativeRelative:
        """The kernels' object for texts whose tokens are at most `reach` apart."""
        keys, queries = (0 if part is None else part.data_ptr() for part in (self.keys, self.queries))
        return kernels().Relative(keys, queries, self.count, index.data_ptr(), reach)


def buckets_of(attention: Any, embeddings: torch.Tensor, known: Buckets | None, kind: Kind) -> Buckets:
    """`known`, if it was computed from these embeddings and from the module's present weights; otherwise new
    buckets, for attention that multiplies in `kind`. `embeddings`: (buckets, hidden size), from `settle`."""
    projections = _projections(attention)
    parameters = [each for module in projections if module is not None for each in module.parameters()]
    if known is not None and known.embeddings is embeddings and _hold(known.stamps, parameters):
        return known
    count, size = 2 * attention.pos_ebd_size, attention.attention_head_size
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        keys, queries = (
            None if module is None else _panels(module(embeddings[:count]), size, kind)
            for module in projections
        )
        return Buckets(embeddings, tuple(Stamp.of(each) for each in parameters), keys, queries, count)


def _hold(stamps: tuple[Stamp, ...], parameters: list[nn.Parameter]) -> bool:
    pairs = zip(stamps, parameters, strict=False)
    return len(stamps) == len(parameters) and all(stamp.holds(each) for stamp, each in pairs)


def settle(embeddings: torch.Tensor, known: Buckets | None) -> torch.Tensor:
    """The embeddings of `known` if their values are equal to these; otherwise a copy of these."""
    own = None if known is None else known.embeddings
    if own is not None and own.dtype is embeddings.dtype and torch.equal(own, embeddings):
        return own
    with torch.inference_mode(False):
        return embeddings.detach().clone()


def _projections(attention: Any) -> tuple[nn.Module | None, nn.Module | None]:
    """The layers that make the buckets' keys and queries; None for those that the model does not use."""
    shared = attention.share_att_key
    key = attention.key_proj if shared else getattr(attention, "pos_key_proj", None)
    query = attention.query_proj if shared else getattr(attention, "pos_query_proj", None)
    kinds = attention.pos_att_type
    return key if "c2p" in kinds else None, query if "p2c" in kinds else None


def _panels(rows: torch.Tensor, head_size: int, kind: Kind) -> torch.Tensor:
    """(buckets, heads x head size) -> (heads, panels, words, panel): each head is packed like a weight."""
    numbers = rows.flip(0).to(torch.bfloat16 if kind is Kind.BFLOAT16 else torch.float32)
    heads = numbers.view(len(rows), -1, head_size).transpose(0, 1)
    heads = nn.functional.pad(heads, (0, 0, 0, -len(rows) % panel())).contiguous()
    words = heads.view(torch.int32)
    return words.view(len(words), -1, panel(), words.shape[-1]).transpose(2, 3).contiguous()


@dataclass(frozen=True, eq=False)
class BiasRow:
    """Of a decoder whose scores get a bias for their distance: (heads, reach), from the farthest key to the
    query itself. It was computed from the parameter of `stamp`."""

    row: torch.Tensor
    stamp: Stamp

    @property
    def reach(self) -> int:
        return self.row.shape[1]

    def bias(self, columns: int, total: int) -> torch.Tensor:
        """(heads, columns, total) for the last queries of `total` tokens. A key behind a query counts as the
        query itself: nobody sees that key."""
        if columns == 1:
            return self.row[:, None, self.reach - total :]
        behind = self.row[:, -1:].expand(-1, columns - 1)
        whole = torch.cat([self.row[:, self.reach - total :], behind], 1)
        return whole.unfold(1, total, 1).flip(1).contiguous()


def made_row(compute_bias: Callable[..., torch.Tensor], parameter: torch.Tensor, total: int) -> BiasRow:
    """For texts of `total` tokens, and of some more. `compute_bias`: the attention's own."""
    reach = max(2 * total, LEAST_REACH)
    with torch.inference_mode(False), torch.no_grad():
        row = compute_bias(1, reach, past_seen_tokens=reach - 1)[0, :, 0]
        return BiasRow(row.float().contiguous(), Stamp.of(parameter))

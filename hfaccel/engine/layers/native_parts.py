"""A layer as the kernels read it: matrices, norms and numbers, gathered from the layer's parts."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import nn

from hfaccel.engine.kernels import ACTIVATIONS, Activation, Kind, kernels, multiplies
from hfaccel.engine.layers.mixtures import native_mixture
from hfaccel.engine.layers.parts import (
    SINKS,
    Parts,
    added_factor,
    copies,
    head_size,
    is_rotated,
    key_heads,
    layout,
    norms_are_wide,
    query_heads,
    scale,
    softcap,
    split_gate_up,
)
from hfaccel.engine.norms import native_norm
from hfaccel.engine.weights.autocast import rounded
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.native import Attention, Crossing, FeedForward, NativeMatrix, NativeNorm, Norms, Residual


class NativeParts:
    """The kernels' object of a layer, and what it was made of. `rounds`: with weights rounded to bfloat16.

    Raises ValueError where a part was replaced by a packed one of another kind or size."""

    def __init__(self, layer: nn.Module, parts: Parts, rounds: bool) -> None:
        self.layer, self.parts, self.rounds = layer, parts, rounds
        self.kept: dict[tuple[int, float], torch.Tensor] = {}  # by the id of a vector, and what was added
        self.kept_weights: dict[int, PackedWeight] = {}  # by the id of what it was rounded from
        self.attention = attrgetter(parts.attention)(layer)
        self.attention_kind = attention_kind(self._packed(parts.linears(layer)[0]).kind)
        self.query_heads = query_heads(parts, layer)
        self.cached_heads = key_heads(parts, layer) * copies(parts, layer)
        self.native = self._made()

    def _made(self) -> object:
        parts, layer = self.parts, self.layer
        norms = (parts.attention_norm, parts.output_norm, parts.query_norm, parts.key_norm)
        ends = (parts.attention_end, parts.output_end)
        return kernels().Layer(
            self._attention(),
            self._feed_forward(),
            Norms(*map(self._norm, norms + ends)),
            Residual(parts.norm_first, parts.parallel, added_factor(layer)),
            self._crossing(),
            *((native_mixture(parts, layer, self._float32),) if parts.experts else ()),
        )

    def _attention(self) -> Attention:
        parts, layer, attention = self.parts, self.layer, self.attention
        return Attention(
            *self._inputs(),
            self._part(parts.attention_output),
            head_size(attention) or 1,
            self.attention_kind,
            1.0 if parts.unscaled else scale(attention),
            softcap(attention),
            *layout(parts, layer),
            parts.pairs,
            parts.unrotated or not is_rotated(attention),
            norms_are_wide(parts, layer),
            parts.norms_rotated,
            self._sinks(),
        )

    def _sinks(self) -> int:
        sinks = self._float32(self.attention._parameters.get(SINKS))
        if sinks is None:
            return 0
        if sinks.numel() != query_heads(self.parts, self.layer) or not sinks.is_contiguous():
            raise ValueError(f"sinks of the shape {tuple(sinks.shape)}")
        return sinks.data_ptr()

    def _inputs(self) -> tuple[NativeMatrix, NativeMatrix | None, NativeMatrix | None]:
        """Of query, key and value; of query alone where that multiplies for all three."""
        parts = self.parts
        if parts.qkv:
            return self._part(parts.qkv), None, None
        return self._part(parts.query), self._part(parts.key), self._part(parts.value)

    def _feed_forward(self) -> FeedForward:
        """Nothing of a mixture without an expert of all tokens."""
        parts = self.parts
        if not parts.wide_inputs:
            return FeedForward(None, None, None, Activation.NONE)
        return FeedForward(*self._gate_and_up(), self._part(parts.down), self._activation())

    def _gate_and_up(self) -> tuple[NativeMatrix | None, NativeMatrix]:
        parts = self.parts
        if parts.gate_up:
            gate, up = (self._matrix(*piece) for piece in split_gate_up(parts, self.layer))
            return gate, up
        return self._part(parts.gate) if parts.gate else None, self._part(parts.up)

    def _activation(self) -> Activation:
        activation = ACTIVATIONS[type(self._at(self.parts.activation)).__name__]
        is_rough = activation is Activation.GELU and self._packed(self._at(self.parts.down)).kind is Kind.INT8
        return Activation.GELU_ROUGH if is_rough else activation

    def _crossing(self) -> Crossing:
        """What attention over an encoder's states needs besides their keys and values."""
        parts = self.parts
        if not parts.cross_attention:
            return Crossing(None, None, None)
        query, output = self._part(parts.cross_query), self._part(parts.cross_output)
        return Crossing(query, output, self._norm(parts.cross_norm))

    def _at(self, path: str) -> nn.Module:
        part: nn.Module = attrgetter(path)(self.layer)
        return part

    def _norm(self, path: str) -> NativeNorm | None:
        return native_norm(self._at(path), self._float32) if path else None

    def _part(self, path: str) -> NativeMatrix:
        return self._matrix(self._at(path))

    def _matrix(self, linear: nn.Module, rows: slice | None = None) -> NativeMatrix:
        bias = linear._parameters.get("bias")
        return self._packed(linear).matrix(self._float32(bias), rows)

    def _packed(self, linear: nn.Module) -> PackedWeight:
        weight = linear.weight
        assert isinstance(weight, PackedWeight)
        if not self.rounds:
            return weight
        if id(weight) not in self.kept_weights:
            self.kept_weights[id(weight)] = rounded(weight)
        return self.kept_weights[id(weight)]

    def _float32(self, vector: torch.Tensor | None, plus: float = 0.0) -> torch.Tensor | None:
        """The vector itself, or a copy in float32, plus a number: `NativeLayer` notices when it changes."""
        if vector is None:
            return None
        if (id(vector), plus) not in self.kept:
            own = vector.detach().float()
            self.kept[id(vector), plus] = own + plus if plus else own
        return self.kept[id(vector), plus]


def attention_kind(kind: Kind) -> Kind:
    """In which numbers attention multiplies where the linear layers multiply in `kind`."""
    if kind is Kind.FLOAT32 or not multiplies(Kind.BFLOAT16):
        return Kind.FLOAT32
    return Kind.BFLOAT16

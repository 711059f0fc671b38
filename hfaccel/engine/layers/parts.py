"""Where a layer keeps its parts, and what the parts' attributes say about the computation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Any

from torch import nn

from hfaccel.engine.calls.snapshot import Table
from hfaccel.engine.weights.linear import is_linear

SINKS = "sinks"  # parameter of an attention: for each head a score of no token


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Paths of a layer's parts, starting at the layer. One projection may do the work of several: `qkv`,
    `gate_up` (gate first, unless `up_first`). Norms come after the residual additions; with `norm_first`,
    `attention_norm` comes before attention and `output_norm` before the feed-forward. An empty path: there is
    no such norm."""

    attention: str
    attention_output: str
    attention_norm: str
    output_norm: str
    activation: str = ""
    down: str = ""
    query: str = ""
    key: str = ""
    value: str = ""
    qkv: str = ""
    up: str = ""
    gate: str = ""
    gate_up: str = ""
    experts: str = ""  # a mixture, beside which activation, up and down are those of an expert of all tokens
    router: str = ""  # and what chooses the others
    shared_gate: str = ""  # whose sigmoid is a factor of what the expert of all tokens gives
    query_norm: str = ""  # over each head
    key_norm: str = ""
    attention_end: str = ""  # norms of what attention and feed-forward add to the residual stream
    output_end: str = ""
    cross_attention: str = ""  # over an encoder's states, between self-attention and feed-forward
    cross_query: str = ""
    cross_key: str = ""
    cross_value: str = ""
    cross_key_value: str = ""  # instead of the two: keys first
    cross_output: str = ""
    cross_norm: str = ""  # its place is that of the other norms
    norm_first: bool = False
    by_head: bool = False  # qkv gives key, value and their queries, queries first, then those of the next key
    groups: int = 1  # qkv gives queries, keys and values of the first part of the heads, then of the next
    up_first: bool = False
    values_first: bool = False  # of these, values come before keys
    unscaled: bool = False  # scores are the products of queries and keys
    norms_rotated: bool = False  # query_norm and key_norm come after rotary positions
    pairs: bool = False  # rotary positions turn numbers 2i and 2i + 1 together
    parallel: bool = False  # the feed-forward takes the layer's input, as attention does
    rotary: bool = False  # the forward takes position_embeddings
    unrotated: bool = False  # and leaves them unused
    causal: bool = False  # the forward takes is_causal, with which no token sees later ones

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of the linear layers, in the order that their weights get in memory."""
        return (
            *self.attention_inputs,
            self.attention_output,
            *self.cross_projections,
            *self.wide_inputs,
            *filter(None, (self.down,)),
        )

    @property
    def cross_projections(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.cross_query, *self.of_encoder, self.cross_output)))

    @property
    def of_encoder(self) -> tuple[str, ...]:
        """Paths of the linear layers that multiply an encoder's states: of keys and values, or of both."""
        return tuple(filter(None, (self.cross_key_value or self.cross_key, self.cross_value)))

    @property
    def attention_inputs(self) -> tuple[str, ...]:
        """Paths of the linear layers that multiply attention's input."""
        return (self.qkv,) if self.qkv else (self.query, self.key, self.value)

    @property
    def wide_inputs(self) -> tuple[str, ...]:
        """Paths of the linear layers that multiply the feed-forward's input."""
        return (self.gate_up,) if self.gate_up else tuple(filter(None, (self.gate, self.up)))

    def missing(self, layer: nn.Module) -> Iterator[str]:
        """The paths at which this layer has no part."""
        of_mixture = (self.experts, self.router, self.shared_gate)
        modules = (self.attention, self.cross_attention, self.activation, *of_mixture)
        paths = filter(None, (*self.projections, *self.norm_paths, *modules))
        return (path for path in paths if not _leads_somewhere(layer, path))

    def linears(self, layer: nn.Module) -> list[nn.Linear]:
        return [attrgetter(path)(layer) for path in self.projections]

    @property
    def norm_paths(self) -> tuple[str, ...]:
        more = (self.query_norm, self.key_norm, self.attention_end, self.output_end)
        return tuple(filter(None, (self.attention_norm, self.cross_norm, self.output_norm, *more)))

    def norms(self, layer: nn.Module) -> list[nn.Module]:
        return [attrgetter(path)(layer) for path in self.norm_paths]

    def vectors(self, layer: nn.Module) -> Iterator[tuple[Table, str]]:
        """Where the biases of the linear layers, the weights and biases of the norms and attention's
        sinks are kept: table and name. Some vectors are None."""
        for module in (*self.linears(layer), *self.norms(layer)):
            for name in ("bias",) if is_linear(module) else ("weight", "bias"):
                yield module._parameters, name
        attention = attrgetter(self.attention)(layer)
        if SINKS in attention._parameters:
            yield attention._parameters, SINKS


def _leads_somewhere(layer: nn.Module, path: str) -> bool:
    try:
        return attrgetter(path)(layer) is not None
    except AttributeError:
        return False


def inputs_of(linear: Any) -> int:
    """Of an nn.Linear, or a Conv1D of transformers."""
    return int(linear.in_features if isinstance(linear, nn.Linear) else linear.nx)


def outputs_of(linear: Any) -> int:
    return int(linear.out_features if isinstance(linear, nn.Linear) else linear.nf)


def layer_index(attention: nn.Module) -> int:
    """The layer's place in the list of layers, and in a cache."""
    index = getattr(attention, "layer_idx", None)
    return int(attention.layer_id if index is None else index)  # type: ignore[arg-type]


def rotary_size(attention: nn.Module) -> int:
    """How many numbers of a head are rotated."""
    size = getattr(attention, "rotary_ndims", None)
    return size if isinstance(size, int) else head_size(attention) or 2


def is_rotated(attention: nn.Module) -> bool:
    """Whether the layer uses the rotary positions that it is given."""
    return bool(getattr(attention, "use_rope", True))


def softcap(attention: nn.Module) -> float:
    """The bound of scores before softmax; 0 for none."""
    return float(getattr(attention, "attn_logit_softcapping", None) or 0)


def added_factor(layer: nn.Module) -> float:
    """The factor of what is added to the residual stream."""
    return float(getattr(layer, "residual_multiplier", 1.0))


def norms_are_wide(parts: Parts, layer: nn.Module) -> bool:
    """Whether the norms of queries and keys are over all heads at once."""
    norm = attrgetter(parts.query_norm)(layer) if parts.query_norm else None
    weight = getattr(norm, "weight", None)
    size = head_size(attrgetter(parts.attention)(layer)) or 1
    return weight is not None and weight.numel() > size and weight.dim() == 1


def head_size(attention: nn.Module) -> int | None:
    for name in ("attention_head_size", "head_dim", "key_value_proj_dim", "head_size"):
        size = getattr(attention, name, None)
        if isinstance(size, int) and size > 0:
            return size
    return None


def scale(attention: nn.Module) -> float:
    """The factor of scores before softmax."""
    for name in ("scaling", "scale", "softmax_scale", "inv_norm_factor"):
        value = getattr(attention, name, None)
        if isinstance(value, int | float):
            return float(value)
    terms = 1 + sum(kind in (getattr(attention, "pos_att_type", None) or ()) for kind in ("c2p", "p2c"))
    return 1.0 / math.sqrt((head_size(attention) or 1) * terms)  # disentangled attention has up to three


def window(attention: nn.Module) -> int:
    """How far a token sees at most; -1 for no limit. The attribute counts the token itself, as in flash
    attention. Decoders whose layers are all alike have it in their config."""
    owner = attention
    if not hasattr(attention, "sliding_window") and getattr(attention, "is_causal", False):
        owner = getattr(attention, "config", attention)
    if getattr(attention, "attention_type", "") == "local":  # GPT-Neo's
        return int(getattr(attention.config, "window_size", 0)) - 1
    if getattr(attention, "is_sliding", None) is False:  # a layer without, in a model with windows
        return -1
    wanted = getattr(owner, "sliding_window", None)
    return wanted - 1 if isinstance(wanted, int) else -1


def split(linear: nn.Linear, *rows: int) -> list[tuple[nn.Linear, slice]]:
    """The linear layer's rows in pieces of these sizes."""
    ends = list(accumulate(rows, initial=0))
    return [(linear, slice(*piece)) for piece in pairwise(ends)]


def query_heads(parts: Parts, layer: nn.Module) -> int:
    size = head_size(attrgetter(parts.attention)(layer)) or 1
    return inputs_of(attrgetter(parts.attention_output)(layer)) // size


def key_heads(parts: Parts, layer: nn.Module) -> int:
    """How many heads of keys, and of values, the layer computes."""
    size = head_size(attrgetter(parts.attention)(layer)) or 1
    if not parts.qkv:
        return outputs_of(attrgetter(parts.key)(layer)) // size
    return (outputs_of(attrgetter(parts.qkv)(layer)) // size - query_heads(parts, layer)) // 2


def copies(parts: Parts, layer: nn.Module) -> int:
    """How often the layer puts each head of keys into its cache: Falcon's, once for each query."""
    repeats = getattr(attrgetter(parts.attention)(layer), "new_decoder_architecture", False)
    return query_heads(parts, layer) // key_heads(parts, layer) if repeats else 1


def layout(parts: Parts, layer: nn.Module) -> tuple[int, bool, int]:
    """How heads lie in the row of a joint projection, and how often in the cache (native/kernels/layer.h)."""
    groups = key_heads(parts, layer) if parts.by_head else parts.groups
    return groups, parts.values_first, copies(parts, layer)


def split_gate_up(parts: Parts, layer: nn.Module) -> list[tuple[nn.Linear, slice]]:
    joint: nn.Linear = attrgetter(parts.gate_up)(layer)
    half = outputs_of(joint) // 2
    pieces = split(joint, half, half)
    return pieces[::-1] if parts.up_first else pieces

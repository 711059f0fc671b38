"""Where families of encoders keep the parts of a layer: one row for each.

A layer is recognised by its parts, not by its class. That such a layer then computes what the row assumes
is not believed but tested, on random input against the layer's own forward, before it is used
(`hfaccel.engine.layers.trial`): rows may therefore name the same parts and differ in what is done with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import Any

from torch import nn

from hfaccel.engine.kernels import ACTIVATIONS, WIDEST_PANEL
from hfaccel.engine.norms import norm_kind


class Adapter(Enum):
    """How a layer is called: most alike, the others as in one model (`hfaccel.engine.layers.adapters`)."""

    NONE = ""
    MPNET = "MPNet"
    T5 = "T5"
    UMT5 = "UMT5"
    DEBERTA = "DeBERTa"
    UNMASKED = "YOLOS"
    MASKED = "LayoutLM"
    EAGER = "MarkupLM"
    EAGER_UNMASKED = "BLIP"
    BIASED = "LayoutLMv3"


# Whose attention is transformers' own, chosen by a config; others bring their own.
WITH_CONFIG = (Adapter.NONE, Adapter.UNMASKED, Adapter.MASKED, Adapter.EAGER, Adapter.EAGER_UNMASKED)


@dataclass(frozen=True)
class Family:
    """Paths of a layer's parts from the layer. One projection may do the work of several: `qkv`, `gate_up`
    (gate first). Norms come after the residual additions, or before what is added (`norm_first`)."""

    name: str
    attention: str
    attention_output: str
    attention_norm: str
    activation: str
    down: str
    output_norm: str
    query: str = ""
    key: str = ""
    value: str = ""
    qkv: str = ""
    up: str = ""
    gate: str = ""
    gate_up: str = ""
    norm_first: bool = False
    rotary: bool = False  # the forward takes position_embeddings
    causal: bool = False  # the forward listens to is_causal: then no token sees those after it
    marks: tuple[str, ...] = ()  # attributes that the attention has, where the parts are those of others too
    adapter: Adapter = Adapter.NONE

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of the linear layers, in the order in which their weights shall lie in memory."""
        return (*self.attention_inputs, self.attention_output, *self.wide_inputs, self.down)

    @property
    def attention_inputs(self) -> tuple[str, ...]:
        """Paths of the linear layers that multiply attention's input."""
        return (self.qkv,) if self.qkv else (self.query, self.key, self.value)

    @property
    def wide_inputs(self) -> tuple[str, ...]:
        """Paths of the linear layers that multiply the feed-forward's input."""
        return (self.gate_up,) if self.gate_up else tuple(filter(None, (self.gate, self.up)))

    def linears(self, layer: nn.Module) -> list[Any]:
        return [attrgetter(path)(layer) for path in self.projections]

    def norms(self, layer: nn.Module) -> list[Any]:
        return [attrgetter(path)(layer) for path in (self.attention_norm, self.output_norm)]


FAMILIES = (
    *(
        Family(
            name,
            attention="attention.self",
            query="attention.self.query",
            key="attention.self.key",
            value="attention.self.value",
            attention_output="attention.output.dense",
            attention_norm="attention.output.LayerNorm",
            up="intermediate.dense",
            activation="intermediate.intermediate_act_fn",
            down="output.dense",
            output_norm="output.LayerNorm",
            adapter=adapter,
            marks=marks,
        )
        for name, adapter, marks in (
            ("BERT", Adapter.NONE, ()),
            ("LayoutLM", Adapter.MASKED, ()),
            ("LayoutLMv3", Adapter.BIASED, ("has_spatial_attention_bias",)),
            ("eager BERT", Adapter.EAGER, ()),
        )
    ),
    Family(
        "DistilBERT",
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        activation="ffn.activation",
        down="ffn.lin2",
        output_norm="output_layer_norm",
    ),
    Family(
        "ALBERT",
        attention="attention",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        attention_output="attention.dense",
        attention_norm="attention.LayerNorm",
        up="ffn",
        activation="activation",
        down="ffn_output",
        output_norm="full_layer_layer_norm",
    ),
    Family(
        "MPNet",
        attention="attention.attn",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_output="attention.attn.o",
        attention_norm="attention.LayerNorm",
        up="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        down="output.dense",
        output_norm="output.LayerNorm",
        adapter=Adapter.MPNET,
    ),
    Family(
        "ModernBERT",
        attention="attn",
        qkv="attn.Wqkv",
        attention_output="attn.Wo",
        attention_norm="attn_norm",
        gate_up="mlp.Wi",
        activation="mlp.act",
        down="mlp.Wo",
        output_norm="mlp_norm",
        norm_first=True,
        rotary=True,
    ),
    Family(
        "NomicBERT",
        attention="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        attention_output="self_attn.o_proj",
        attention_norm="post_attention_layernorm",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        activation="mlp.act_fn",
        down="mlp.down_proj",
        output_norm="post_mlp_layernorm",
        rotary=True,
    ),
    Family(
        "ViT",
        attention="attention",
        query="attention.q_proj",
        key="attention.k_proj",
        value="attention.v_proj",
        attention_output="attention.o_proj",
        attention_norm="layernorm_before",
        up="mlp.fc1",
        activation="mlp.activation_fn",
        down="mlp.fc2",
        output_norm="layernorm_after",
        norm_first=True,
    ),
    Family(
        "YOLOS",
        attention="attention.attention",
        query="attention.attention.query",
        key="attention.attention.key",
        value="attention.attention.value",
        attention_output="attention.output.dense",
        attention_norm="layernorm_before",
        up="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        down="output.dense",
        output_norm="layernorm_after",
        norm_first=True,
        adapter=Adapter.UNMASKED,
    ),
    *(
        Family(
            name,
            attention="self_attn",
            query="self_attn.q_proj",
            key="self_attn.k_proj",
            value="self_attn.v_proj",
            attention_output="self_attn.out_proj",
            attention_norm="layer_norm1",
            up="mlp.fc1",
            activation="mlp.activation_fn",
            down="mlp.fc2",
            output_norm="layer_norm2",
            norm_first=True,
            causal=causal,
        )
        for name, causal in (("CLIP", True), ("SigLIP", False))  # which does not listen
    ),
    Family(
        "BLIP",
        attention="self_attn",
        qkv="self_attn.qkv",
        attention_output="self_attn.projection",
        attention_norm="layer_norm1",
        up="mlp.fc1",
        activation="mlp.activation_fn",
        down="mlp.fc2",
        output_norm="layer_norm2",
        norm_first=True,
        adapter=Adapter.EAGER_UNMASKED,
    ),
    *(
        Family(
            name,
            attention="self_attn",
            query="self_attn.q_proj",
            key="self_attn.k_proj",
            value="self_attn.v_proj",
            attention_output="self_attn.out_proj",
            attention_norm="self_attn_layer_norm",
            up="fc1",
            activation="activation_fn",
            down="fc2",
            output_norm="final_layer_norm",
            norm_first=norm_first,
        )
        for name, norm_first in (("Whisper", True), ("BART", False))
    ),
    *(
        Family(
            name,
            attention="attention",
            query="attention.q_proj",
            key="attention.k_proj",
            value="attention.v_proj",
            attention_output="attention.out_proj",
            attention_norm="layer_norm",
            up="feed_forward.intermediate_dense",
            activation="feed_forward.intermediate_act_fn",
            down="feed_forward.output_dense",
            output_norm="final_layer_norm",
            norm_first=norm_first,
        )
        for name, norm_first in (("wav2vec2", False), ("wav2vec2 with stable norm", True))
    ),
    Family(
        "DeBERTa",
        attention="attention.self",
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        attention_output="attention.output.dense",
        attention_norm="attention.output.LayerNorm",
        up="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        down="output.dense",
        output_norm="output.LayerNorm",
        adapter=Adapter.DEBERTA,
    ),
    *(
        Family(
            f"{adapter.value} gated" if gate else adapter.value,
            attention="layer.0.SelfAttention",
            query="layer.0.SelfAttention.q",
            key="layer.0.SelfAttention.k",
            value="layer.0.SelfAttention.v",
            attention_output="layer.0.SelfAttention.o",
            attention_norm="layer.0.layer_norm",
            gate=gate,
            up=up,
            activation="layer.1.DenseReluDense.act",
            down="layer.1.DenseReluDense.wo",
            output_norm="layer.1.layer_norm",
            norm_first=True,
            adapter=adapter,
        )
        for adapter in (Adapter.T5, Adapter.UMT5)
        for gate, up in (
            ("", "layer.1.DenseReluDense.wi"),
            ("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"),
        )
    ),
)


def family_of(name: str) -> Family:
    """Raises ValueError for a name that no row has."""
    for family in FAMILIES:
        if family.name == name:
            return family
    names = ", ".join(family.name for family in FAMILIES)
    raise ValueError(f"a family must be one of {names}, but got {name!r}")


def candidates(layer: nn.Module) -> Iterator[Family]:
    """The rows whose parts this module has."""
    for family in FAMILIES:
        try:
            family.linears(layer), family.norms(layer)
            attrgetter(family.activation)(layer)
            attention = attrgetter(family.attention)(layer)
        except AttributeError:
            continue
        if all(hasattr(attention, mark) for mark in family.marks):
            yield family


def fusing_problem(family: Family, layer: nn.Module) -> str:
    """Why the parts, as they are, cannot be computed as one layer; "" where they can. The linear layers
    must have been found packable before."""
    activation, attention = attrgetter(family.activation)(layer), attrgetter(family.attention)(layer)
    linears = family.linears(layer)
    if not all(isinstance(linear, nn.Linear) for linear in linears):
        return "a projection is no nn.Linear"
    if any(norm_kind(norm) is None for norm in family.norms(layer)):
        return "its norms are not nn.LayerNorm"
    if type(activation).__name__ not in ACTIVATIONS:
        return f"the activation {type(activation).__name__} cannot be fused"
    if getattr(layer, "is_decoder", False) or getattr(attention, "is_causal", False):
        return "it is a decoder's layer"
    if family.adapter in WITH_CONFIG and not hasattr(attention, "config"):
        return "its attention does not use transformers' attention interface"
    width = linears[0].out_features // (3 if family.qkv else 1)
    size = head_size(attention)
    if size is None or size % 2 or width % size:
        return f"heads of {size} numbers do not make up a row of {width}"
    splits = [*([width] if family.qkv else []), *([linears[-1].in_features] if family.gate_up else [])]
    if any(split % WIDEST_PANEL for split in splits):
        return f"parts of a joint projection are no multiple of {WIDEST_PANEL} wide"
    return ""


def head_size(attention: nn.Module) -> int | None:
    for name in ("attention_head_size", "head_dim", "key_value_proj_dim"):
        size = getattr(attention, name, None)
        if isinstance(size, int) and size > 0:
            return size
    return None


def scale(attention: nn.Module) -> float:
    """What scores are multiplied with before softmax."""
    for name in ("scaling", "scale"):
        value = getattr(attention, name, None)
        if isinstance(value, int | float):
            return float(value)
    terms = 1 + sum(kind in (getattr(attention, "pos_att_type", None) or ()) for kind in ("c2p", "p2c"))
    return 1.0 / math.sqrt((head_size(attention) or 1) * terms)  # of disentangled attention there are three


def window(attention: nn.Module) -> int:
    """How far a token sees at most, -1 for no limit. The attribute counts the token itself (as flash
    attention does)."""
    wanted = getattr(attention, "sliding_window", None)
    return wanted - 1 if isinstance(wanted, int) else -1


def split(linear: nn.Linear, parts: int) -> list[tuple[nn.Linear, slice]]:
    """The linear layer's rows in equal parts."""
    rows = linear.out_features // parts
    return [(linear, slice(part * rows, (part + 1) * rows)) for part in range(parts)]


def vectors(family: Family, layer: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the biases, and the weights and biases of the norms are kept: table and name. Some are None."""
    for module in (*family.linears(layer), *family.norms(layer)):
        for name in ("bias",) if isinstance(module, nn.Linear) else ("weight", "bias"):
            yield module._parameters, name

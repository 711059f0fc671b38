"""Encoder layers run as one function: six calls into oneDNN and torch instead of a tree of modules.

A layer is recognised by its parts, not by its class: one row of POST_NORM_LAYERS says where a family
keeps them. That such a layer then computes what the row assumes is not believed but tested, on random
input against the layer's own forward, before it is used (`hfaccel.engine.transform`).

The module tree stays: a fused layer has the same children and parameters, and is an instance of its
former class. When anything about a call or about the tree is out of the ordinary, the stock forward
runs and the reason is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from hfaccel.engine.linear import (
    FUSED_ACTIVATIONS,
    linear_add,
    linear_pointwise,
    linear_problem,
    stock_reason,
)
from hfaccel.engine.packed import PackedWeight, joined, place_side_by_side, stacked_metadata


@dataclass(frozen=True)
class PostNormLayer:
    """Where a family keeps the parts of a layer that normalises after each residual addition."""

    family: str
    attention: str
    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    intermediate: str
    activation: str
    output: str
    output_norm: str

    def projections(self, layer: nn.Module) -> list[Any]:
        """The linear layers for query, key and value."""
        return [attrgetter(path)(layer) for path in (self.query, self.key, self.value)]

    def linears(self, layer: nn.Module) -> list[Any]:
        """All linear layers, in the order in which their weights shall lie in memory."""
        others = (self.attention_output, self.intermediate, self.output)
        return self.projections(layer) + [attrgetter(path)(layer) for path in others]

    def norms(self, layer: nn.Module) -> list[Any]:
        return [attrgetter(path)(layer) for path in (self.attention_norm, self.output_norm)]


POST_NORM_LAYERS = (
    PostNormLayer(
        "BERT",
        attention="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        attention_output="attention.output.dense",
        attention_norm="attention.output.LayerNorm",
        intermediate="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        output="output.dense",
        output_norm="output.LayerNorm",
    ),
    PostNormLayer(
        "DistilBERT",
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        attention_norm="sa_layer_norm",
        intermediate="ffn.lin1",
        activation="ffn.activation",
        output="ffn.lin2",
        output_norm="output_layer_norm",
    ),
)

# Keyword arguments that transformers hands down to every layer and that have no effect in one whose
# attention is scaled_dot_product_attention without cache.
HARMLESS_ARGUMENTS = frozenset({"position_ids", "use_cache", "return_dict", "output_hidden_states"})
# Hooks that transformers itself installs for output_attentions; with sdpa there is nothing to capture.
HARMLESS_HOOKS = "transformers.utils.output_capturing"


def match(layer: nn.Module) -> tuple[PostNormLayer, str] | None:
    """The row whose parts this module has, and the reason not to fuse it ("" for none)."""
    for row in POST_NORM_LAYERS:
        try:
            row.linears(layer), row.norms(layer)
            attrgetter(row.activation)(layer), attrgetter(row.attention)(layer)
        except AttributeError:
            continue
        return row, _linears_problem(row, layer) or _parts_problem(row, layer)
    return None


def _linears_problem(row: PostNormLayer, layer: nn.Module) -> str:
    for linear in row.linears(layer):
        problem = linear_problem(linear) if isinstance(linear, nn.Linear) else "is no nn.Linear"
        if problem:
            return f"a projection cannot be packed: {problem}"
    query, key, value = row.projections(layer)
    if not query.weight.shape == key.weight.shape == value.weight.shape:
        return "query, key and value have different shapes"
    if len({linear.bias is None for linear in (query, key, value)}) > 1:
        return "only some of query, key and value have a bias"
    if stacked_metadata(3, *query.weight.shape) is None:
        return f"three packed matrices of shape {tuple(query.weight.shape)} do not make one"
    return ""


def _parts_problem(row: PostNormLayer, layer: nn.Module) -> str:
    activation, attention = attrgetter(row.activation)(layer), attrgetter(row.attention)(layer)
    if any(type(norm) is not nn.LayerNorm for norm in row.norms(layer)):
        return "its norms are not nn.LayerNorm"
    if type(activation).__name__ not in FUSED_ACTIVATIONS:
        return f"the activation {type(activation).__name__} cannot be fused"
    if getattr(layer, "is_decoder", False) or getattr(attention, "is_causal", False):
        return "it is a decoder's layer"
    if not hasattr(attention, "config") or not hasattr(attention, "scaling"):
        return "its attention does not use transformers' attention interface"
    return ""


class Parts:
    """The modules and matrices of one fused layer, looked up once, and whether they still are its."""

    def __init__(self, layer: nn.Module, row: PostNormLayer) -> None:
        self.attention = attrgetter(row.attention)(layer)
        self.linears = row.linears(layer)
        self.attention_norm, self.output_norm = row.norms(layer)
        activation = attrgetter(row.activation)(layer)
        self.activation, self.algorithm = FUSED_ACTIVATIONS[type(activation).__name__]
        self.qkv = joined([linear.weight for linear in self.linears[:3]])
        self.memories = [getattr(linear.weight, "memory", None) for linear in self.linears]
        self.links = list(_links(layer))
        self.hooks = [
            hooks for _, _, child in self.links for hooks in (child._forward_hooks, child._forward_pre_hooks)
        ]

    def problem(self) -> str:
        """Why the stock forward must run; "" for none. A few microseconds: it runs at every call."""
        if self.qkv is None:
            return "query, key and value do not lie side by side in memory"
        for table, name, child in self.links:
            if table.get(name) is not child:
                return f"the submodule {name} was replaced"
        for linear, memory in zip(self.linears, self.memories, strict=True):
            weight = linear._parameters["weight"]
            if type(weight) is not PackedWeight or weight.memory is not memory:
                return "a weight was replaced, moved or cast"
        for hooks in self.hooks:
            if hooks and any(hook.__module__ != HARMLESS_HOOKS for hook in hooks.values()):
                return "a submodule has a hook"
        implementation = self.attention.config._attn_implementation
        return "" if implementation == "sdpa" else f"the attention implementation is {implementation}"


def _links(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, nn.Module]]:
    """Every submodule with the table and the name under which its parent knows it."""
    for name, child in module._modules.items():
        if child is not None:
            yield module._modules, name, child
            yield from _links(child)


def run(parts: Parts, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """One encoder layer. `hidden`: (batch, sequence length, hidden size), float32, without gradient."""
    query, key, value, attention_output, intermediate, output = parts.linears
    batch, length, _ = hidden.shape
    # The biases are joined at each call: a copy kept from before would miss in-place changes.
    bias = None if query.bias is None else torch.cat([query.bias, key.bias, value.bias])
    qkv = linear_pointwise(hidden, parts.qkv, bias, "none", [], "")
    heads = qkv.view(batch, length, 3, -1, parts.attention.attention_head_size)
    q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, head size)
    context = nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=parts.attention.scaling
    )
    context = context.transpose(1, 2).reshape(batch, length, -1)
    attended = linear_add(context, hidden, attention_output.weight.matrix, attention_output.bias, "add")
    attended = parts.attention_norm(attended)
    wide = linear_pointwise(
        attended, intermediate.weight.matrix, intermediate.bias, parts.activation, [], parts.algorithm
    )
    result: torch.Tensor = linear_add(wide, attended, output.weight.matrix, output.bias, "add")
    return parts.output_norm(result)  # type: ignore[no-any-return]


class FusedLayer(nn.Module):
    """Mixed into a layer's class by `fused_class`; `hfaccel_row` and `hfaccel_stock` are set there."""

    hfaccel_row: PostNormLayer
    hfaccel_stock: type[nn.Module]

    @torch.compiler.disable
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        parts = self.__dict__.get("_hfaccel_parts")
        if parts is None:
            parts = self.__dict__["_hfaccel_parts"] = Parts(self, self.hfaccel_row)
        reason = self._reason(parts, hidden_states, args, kwargs)
        if not reason:
            return run(parts, hidden_states, attention_mask)
        self._hfaccel_stock_calls[reason] += 1
        return super().forward(hidden_states, attention_mask, *args, **kwargs)

    def _reason(
        self, parts: Parts, hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str:
        if self.training:
            return "the model is in training mode"
        if any(value is not None for value in args):
            return "cross-attention or a cache was passed"
        for name, value in kwargs.items():
            if value is not None and name not in HARMLESS_ARGUMENTS:
                return f"{name} was passed"
        if torch.is_grad_enabled():
            return "gradients are enabled; torch.inference_mode is faster"
        return stock_reason(hidden) or parts.problem()

    @property
    def _hfaccel_stock_calls(self) -> Counter[str]:
        calls: Counter[str] = self.__dict__.setdefault("_hfaccel_calls", Counter())
        return calls

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_hfaccel_parts", None)  # views of the parameters, which are found again when needed
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Copies of weights lie apart from each other; a fused layer needs three of them side by side.
        place_side_by_side([linear.weight for linear in self.hfaccel_row.projections(self)])

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, (self.hfaccel_stock, self.hfaccel_row), self.__getstate__()


_fused_classes: dict[Any, type[FusedLayer]] = {}


def fused_class(stock: type[nn.Module], row: PostNormLayer) -> type[FusedLayer]:
    """A subclass of `stock` whose forward is fused; the same class for the same arguments."""
    if (stock, row) not in _fused_classes:
        members = {"hfaccel_row": row, "hfaccel_stock": stock, "__module__": __name__}
        _fused_classes[stock, row] = type(f"Fused{stock.__name__}", (FusedLayer, stock), members)
    return _fused_classes[stock, row]


def _new(stock: type[nn.Module], row: PostNormLayer) -> nn.Module:
    """For pickle and deepcopy: an empty module, filled by __setstate__."""
    cls = fused_class(stock, row)
    return cls.__new__(cls)


def fuse(layer: nn.Module, row: PostNormLayer) -> None:
    """Run the layer as one function. Its linear layers are packed, query, key and value side by side."""
    layer.__class__ = fused_class(type(layer), row)


def unfuse(layer: FusedLayer) -> None:
    """Undo `fuse`; the linear layers stay packed."""
    layer.__dict__.pop("_hfaccel_parts", None)
    layer.__dict__.pop("_hfaccel_calls", None)
    module: nn.Module = layer
    module.__class__ = layer.hfaccel_stock

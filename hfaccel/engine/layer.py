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
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from hfaccel.engine.linear import (
    FUSED_ACTIVATIONS,
    JoinedLinear,
    join,
    joined_matrix,
    linear_add,
    linear_pointwise,
    stock_reason,
)
from hfaccel.memory import Arena


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

    @property
    def linears(self) -> tuple[str, ...]:
        return (self.query, self.key, self.value, self.attention_output, self.intermediate, self.output)

    @property
    def norms(self) -> tuple[str, ...]:
        return (self.attention_norm, self.output_norm)


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
            linears = [attrgetter(path)(layer) for path in row.linears]
            norms = [attrgetter(path)(layer) for path in row.norms]
            activation = attrgetter(row.activation)(layer)
            attention = attrgetter(row.attention)(layer)
        except AttributeError:
            continue
        return row, _problem(linears, norms, activation, attention, layer)
    return None


def _problem(
    linears: list[Any], norms: list[Any], activation: Any, attention: Any, layer: nn.Module
) -> str:
    for linear in linears:
        if type(linear) is not nn.Linear or linear.weight.dtype is not torch.float32 or not linear.weight.is_cpu:
            return "its projections are not plain float32 nn.Linear layers on the CPU"
    if any(type(norm) is not nn.LayerNorm for norm in norms):
        return "its norms are not nn.LayerNorm"
    query, key, value = linears[:3]
    if not query.weight.shape == key.weight.shape == value.weight.shape:
        return "query, key and value have different shapes"
    if len({linear.bias is None for linear in (query, key, value)}) > 1:
        return "only some of query, key and value have a bias"
    if type(activation).__name__ not in FUSED_ACTIVATIONS:
        return f"the activation {type(activation).__name__} cannot be fused"
    if getattr(layer, "is_decoder", False) or getattr(attention, "is_causal", False):
        return "it is a decoder's layer"
    if not hasattr(attention, "config") or not hasattr(attention, "scaling"):
        return "its attention does not use transformers' attention interface"
    return ""


class Parts:
    """The modules and tensors of one fused layer, looked up once, and whether they still are its parts."""

    def __init__(self, layer: nn.Module, row: PostNormLayer) -> None:
        self.attention = attrgetter(row.attention)(layer)
        self.qkv: tuple[nn.Linear, ...] = tuple(
            attrgetter(path)(layer) for path in (row.query, row.key, row.value)
        )
        self.attention_output = attrgetter(row.attention_output)(layer)
        self.attention_norm = attrgetter(row.attention_norm)(layer)
        self.intermediate = attrgetter(row.intermediate)(layer)
        self.output = attrgetter(row.output)(layer)
        self.output_norm = attrgetter(row.output_norm)(layer)
        activation = attrgetter(row.activation)(layer)
        self.activation, self.algorithm = FUSED_ACTIVATIONS[type(activation).__name__]
        self.head_size = getattr(self.attention, "attention_head_size", 0)
        self.matrix = joined_matrix(self.qkv)
        self.addresses = self._addresses()
        self.links = list(_links(layer))
        self.hooks = [hooks for _, _, child in self.links for hooks in _hook_tables(child)]

    def _addresses(self) -> list[int]:
        return [linear.weight.data_ptr() for linear in self.qkv]

    def problem(self) -> str:
        """Why the stock forward must run; "" for none. A few microseconds: it runs at every call."""
        if self.matrix is None or self._addresses() != self.addresses:
            return "query, key and value were replaced, moved or cast"
        for table, name, child in self.links:
            if table.get(name) is not child:
                return f"the submodule {name} was replaced"
        for hooks in self.hooks:
            if hooks and any(hook.__module__ != HARMLESS_HOOKS for hook in hooks.values()):
                return "a submodule has a hook"
        if self.attention.config._attn_implementation != "sdpa":
            return f"the attention implementation is {self.attention.config._attn_implementation}"
        return ""


def _links(module: nn.Module) -> Any:
    for name, child in module._modules.items():
        if child is not None:
            yield module._modules, name, child
            yield from _links(child)


def _hook_tables(module: nn.Module) -> tuple[Any, Any]:
    return module._forward_hooks, module._forward_pre_hooks


def run(parts: Parts, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """One encoder layer. `hidden`: (batch, sequence length, hidden size), float32, without gradient."""
    assert parts.matrix is not None
    batch, length, size = hidden.shape
    weight, bias = parts.matrix
    qkv = linear_pointwise(hidden, weight, bias, "none", [], "")
    query, key, value = qkv.view(batch, length, 3, -1, parts.head_size).permute(2, 0, 3, 1, 4)
    context = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=parts.attention.scaling
    )
    context = context.transpose(1, 2).reshape(batch, length, -1)
    dense = parts.attention_output
    attended = parts.attention_norm(linear_add(context, hidden, dense.weight, dense.bias, "add"))
    dense = parts.intermediate
    wide = linear_pointwise(attended, dense.weight, dense.bias, parts.activation, [], parts.algorithm)
    dense = parts.output
    result: torch.Tensor = parts.output_norm(linear_add(wide, attended, dense.weight, dense.bias, "add"))
    return result


class FusedLayer(nn.Module):
    """Mixed into a layer's class by `fused_class`; `hfaccel_row` and `hfaccel_stock` are set there."""

    hfaccel_row: PostNormLayer
    hfaccel_stock: type[nn.Module]

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
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
        if hidden.numel() == 0:
            return "the batch is empty"
        return parts.problem() or stock_reason(hidden, parts.output.weight)

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
        row = self.hfaccel_row
        # Copies of joined weights lie apart from each other; the copy of the layer joins them anew.
        join(tuple(attrgetter(path)(self) for path in (row.query, row.key, row.value)), Arena(0))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, (self.hfaccel_stock, self.hfaccel_row), self.__getstate__()


@cache
def fused_class(stock: type[nn.Module], row: PostNormLayer) -> type[nn.Module]:
    """A subclass of `stock` whose forward is fused; the same class for the same arguments."""
    members = {"hfaccel_row": row, "hfaccel_stock": stock, "__module__": __name__}
    return type(f"Fused{stock.__name__}", (FusedLayer, stock), members)


def _new(stock: type[nn.Module], row: PostNormLayer) -> nn.Module:
    """For pickle and deepcopy: an empty module, filled by __setstate__."""
    cls = fused_class(stock, row)
    return cls.__new__(cls)


def fuse(layer: nn.Module, row: PostNormLayer, arena: Arena) -> None:
    """Join query, key and value, and run the layer as one function."""
    join(tuple(attrgetter(path)(layer) for path in (row.query, row.key, row.value)), arena)
    layer.__class__ = fused_class(type(layer), row)


def unfuse(layer: FusedLayer) -> None:
    """Undo fuse, except for the linear layers: `hfaccel.engine.linear.unpack` undoes those."""
    layer.__dict__.pop("_hfaccel_parts", None)
    layer.__dict__.pop("_hfaccel_calls", None)
    layer.__class__ = layer.hfaccel_stock


__all__ = ["FusedLayer", "JoinedLinear", "fuse", "match", "unfuse"]

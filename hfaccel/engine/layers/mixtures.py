"""Layers whose feed-forward is a mixture of experts: what the kernels need of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from hfaccel.engine.calls.guards import COMPUTED
from hfaccel.engine.calls.snapshot import Table
from hfaccel.engine.experts.experts import PackedExperts, is_known, native_experts
from hfaccel.engine.experts.form import form_of, is_experts
from hfaccel.engine.experts.selection import pack_copy, tried
from hfaccel.engine.layers.parts import Parts
from hfaccel.engine.layers.routers import choice_of, correction_of, router_vectors
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.native import Mixture, Router
from hfaccel.upstream.of_experts import CHOICE
from hfaccel.upstream.of_transformers import collected

AsFloat32 = Callable[[torch.Tensor | None], torch.Tensor | None]  # the same vector, or a copy that is kept
LOGITS = "router_logits"  # what transformers collects of a router


def mixture_problem(parts: Parts, layer: nn.Module) -> str:
    """Why the kernels cannot compute this layer's mixture; "" if they may. A trial says whether they do."""
    router, experts = _router(parts, layer), attrgetter(parts.experts)(layer)
    weight, chosen = router._parameters.get("weight"), getattr(router, "top_k", None)
    if not is_experts(experts):
        return "its experts are no module of weights with three dimensions"
    if weight is None or weight.dim() != 2 or not isinstance(chosen, int):
        return "its router is not one weight that chooses the highest scores"
    known = {id(each) for each in (*experts.parameters(), *_vectors_of_layer(parts, layer))}
    known |= {id(linear.weight) for linear in parts.linears(layer)}
    if any(id(each) not in known for each in (*layer.parameters(), *layer.buffers())):
        return "its feed-forward has other numbers than those of its router and its experts"
    if choice_of(router, _around(parts, layer)) is None:
        return f"{type(router).__name__} chooses experts in another way than is known"
    return ""


def _vectors_of_layer(parts: Parts, layer: nn.Module) -> Iterator[torch.Tensor | None]:
    for table, name in (*parts.vectors(layer), *mixture_vectors(parts, layer)):
        yield table.get(name)


def pack_mixture(parts: Parts, layer: nn.Module) -> str:
    """Pack the experts of a layer on trial, which has parameters of its own; or why they cannot be."""
    if not parts.experts:
        return ""
    experts = attrgetter(parts.experts)(layer)
    formula, problem = ("", "") if isinstance(experts, PackedExperts) else tried(experts)
    if formula:
        pack_copy(experts, formula)
    return problem


def has_packed_mixture(parts: Parts, layer: nn.Module) -> bool:
    """Whether the weights of its experts are packed, where it has some."""
    if not parts.experts:
        return True
    experts = attrgetter(parts.experts)(layer)
    return isinstance(experts, PackedExperts) and len(experts.hfaccel_weights()) == len(
        experts.hfaccel_packed()
    )


def native_mixture(parts: Parts, layer: nn.Module, as_float32: AsFloat32) -> Mixture:
    """What the kernels need. Raises ValueError where the parts are not as a trial found them."""
    experts = attrgetter(parts.experts)(layer)
    if not has_packed_mixture(parts, layer) or not is_known(experts):
        raise ValueError(
            "the weights of its experts are not packed, or computed by a function of the program"
        )
    if form_of(experts) != experts.hfaccel_key[0]:
        raise ValueError("the form of the experts has changed")
    router = _native_router(_router(parts, layer), _around(parts, layer), as_float32)
    return Mixture(native_experts(experts), router, _shared_gate(parts, layer, as_float32))


def _native_router(router: Any, around: nn.Module, as_float32: AsFloat32) -> Router:
    weight: torch.Tensor = router.weight
    choice, correction = choice_of(router, around), correction_of(router, around)
    if choice is None or weight.dtype not in COMPUTED or not weight.is_contiguous():
        raise ValueError("the router's weight, or how the router chooses, has changed")
    vectors = router._parameters.get("bias"), None if correction is None else correction[0][correction[1]]
    if any(each is not None and each.numel() != len(weight) for each in vectors):
        raise ValueError("the router has no number for each expert")
    bias, added = (_address(as_float32(each)) for each in vectors)
    return Router(
        weight.data_ptr(),
        weight.dtype is torch.bfloat16,
        bias,
        added,
        choice.sigmoid,
        choice.chosen,
        choice.groups,
        choice.chosen_groups,
        choice.counted,
        choice.normalised,
        choice.least,
        choice.scale,
    )


def _shared_gate(parts: Parts, layer: nn.Module, as_float32: AsFloat32) -> int:
    """Where the weight lies by which a token's row decides what the expert of all tokens counts."""
    if not parts.shared_gate:
        return 0
    gate = attrgetter(parts.shared_gate)(layer)
    if type(gate) is not nn.Linear or gate.bias is not None or gate.out_features != 1:
        raise ValueError("the gate of the expert of all tokens is not one row of numbers")
    if isinstance(gate.weight, PackedWeight):
        raise ValueError("the gate of the expert of all tokens is packed")
    return _address(as_float32(gate.weight))


def mixture_memories(parts: Parts, layer: nn.Module) -> Iterator[tuple[Table, str, Any]]:
    """Where its experts' packed bytes and the function that computes them are named, and what is there."""
    experts = attrgetter(parts.experts)(layer) if parts.experts else None
    if isinstance(experts, PackedExperts):
        for name in experts.hfaccel_packed():
            weight: Any = experts._parameters[name]
            yield experts._parameters, name, weight
            yield vars(weight), "memory", vars(weight).get("memory")
        chosen = vars(experts.config)
        yield from ((chosen, name, value) for name, value in chosen.items() if name.startswith(CHOICE))


def mixture_vectors(parts: Parts, layer: nn.Module) -> Iterator[tuple[Table, str]]:
    """Where the numbers of the mixture are kept that the kernels read as they lie."""
    if not parts.experts:
        return
    yield from router_vectors(_router(parts, layer), _around(parts, layer))
    if parts.shared_gate:
        yield attrgetter(parts.shared_gate)(layer)._parameters, "weight"
    experts = attrgetter(parts.experts)(layer)
    yield from ((experts._parameters, name) for name in form_of(experts).biases)


def logits_problem() -> str:
    """Why a layer must run its own forward in which transformers collects what its router gives."""
    names = collected()
    wanted = names is None or any(name.endswith(LOGITS) for name in names)
    return "the router's scores are collected" if wanted else ""


def _address(vector: torch.Tensor | None) -> int:
    return 0 if vector is None else vector.data_ptr()


def _router(parts: Parts, layer: nn.Module) -> Any:
    return attrgetter(parts.router)(layer)


def _around(parts: Parts, layer: nn.Module) -> nn.Module:
    """The module of router and experts."""
    return layer.get_submodule(parts.router.rpartition(".")[0])

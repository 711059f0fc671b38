"""Layers whose feed-forward is a mixture of experts: what the kernels need of it."""

from __future__ import annotations

from collections.abc import Iterator
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
from hfaccel.native import NativeExperts
from hfaccel.upstream.of_experts import CHOICE
from hfaccel.upstream.of_transformers import collected

NativeMixture = tuple[NativeExperts, int, bool, int, bool]
LOGITS = "router_logits"  # what transformers collects of a router


def mixture_problem(parts: Parts, layer: nn.Module) -> str:
    """Why the kernels cannot compute this layer's mixture; "" if they may. A trial says whether they do."""
    router, experts = _router(parts, layer), attrgetter(parts.experts)(layer)
    weight, chosen = router._parameters.get("weight"), getattr(router, "top_k", None)
    if not is_experts(experts):
        return "its experts are no module of weights with three dimensions"
    if weight is None or weight.dim() != 2 or not isinstance(chosen, int):
        return "its router is not one weight that chooses the highest scores"
    inside = [*experts.parameters(), *router.parameters(recurse=False)]
    own = {
        id(each) for linear in (*parts.linears(layer), *parts.norms(layer)) for each in linear.parameters()
    }
    known = own | {id(each) for each in inside}
    if len(list(router.parameters())) > 1 or any(id(each) not in known for each in layer.parameters()):
        return "its feed-forward has other weights than those of its router and its experts"
    return "its router has numbers besides its weight" if list(layer.buffers()) else ""


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


def native_mixture(parts: Parts, layer: nn.Module) -> NativeMixture:
    """What the kernels need. Raises ValueError where the parts are not as a trial found them."""
    experts, router = attrgetter(parts.experts)(layer), _router(parts, layer)
    weight: torch.Tensor = router.weight
    if not has_packed_mixture(parts, layer) or not is_known(experts):
        raise ValueError(
            "the weights of its experts are not packed, or computed by a function of the program"
        )
    if (
        weight.dtype not in COMPUTED
        or not weight.is_contiguous()
        or form_of(experts) != experts.hfaccel_key[0]
    ):
        raise ValueError("the router's weight or the form of the experts has changed")
    normalised = bool(getattr(router, "norm_topk_prob", True))
    place = weight.data_ptr(), weight.dtype is torch.bfloat16
    return native_experts(experts), *place, int(router.top_k), normalised


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
    yield _router(parts, layer)._parameters, "weight"
    experts = attrgetter(parts.experts)(layer)
    yield from ((experts._parameters, name) for name in form_of(experts).biases)


def logits_problem() -> str:
    """Why a layer must run its own forward in which transformers collects what its router gives."""
    names = collected()
    wanted = names is None or any(name.endswith(LOGITS) for name in names)
    return "the router's scores are collected" if wanted else ""


def _router(parts: Parts, layer: nn.Module) -> Any:
    return attrgetter(parts.router)(layer)

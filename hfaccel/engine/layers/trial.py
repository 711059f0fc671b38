"""A layer's fused form against its own forward on random input: what a family's row assumes is tested."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hfaccel import upstream
from hfaccel.engine.calls.code import trust, trust_again
from hfaccel.engine.calls.fallback import stock_calls_of
from hfaccel.engine.calls.trials import difference, without_padding
from hfaccel.engine.layers.adapters import CALLS
from hfaccel.engine.layers.call import CAUSAL
from hfaccel.engine.layers.families import Family, candidates, fusing_problem, head_size, window
from hfaccel.engine.layers.layer import FusedLayer, fuse
from hfaccel.engine.weights.linear import linear_problem, pack
from hfaccel.engine.weights.packed import PackedWeight, packed_bytes
from hfaccel.memory import Arena, padded
from hfaccel.upstream.of_torch import tree_map

Trials = dict[object, str]  # one for each kind of layer: what `trial` said


def match(layer: nn.Module, trials: Trials | None = None) -> tuple[Family | None, str] | None:
    """The row that computes what this layer computes, or None and why there is none; None where the
    module has the parts of no row. `trials` remembers what was tried, for layers of one kind."""
    problem, trials = "", {} if trials is None else trials
    missing = upstream.problem(upstream.Need.LAYERS)
    for family in candidates(layer):
        problem = missing or _linears_problem(family, layer) or fusing_problem(family, layer)
        if not problem:
            key = kind_of(family, layer)
            if key not in trials:
                before = trust(layer.modules())
                trials[key] = trial(layer, family)
                if trials[key]:
                    trust_again(before)
            problem = trials[key]
        if not problem:
            return family, ""
    return (None, problem) if problem else None


def kind_of(family: Family, layer: nn.Module) -> object:
    """Layers of one class may differ in their parts (a model's first layer may lack a norm), and a model
    may hold layers of one class in several sizes."""
    attention = layer.get_submodule(family.attention)
    parts = tuple((name, type(child)) for name, child in layer.named_modules())
    shapes = tuple(linear.weight.shape for linear in family.linears(layer))
    return type(layer), parts, shapes, family.name, head_size(attention), window(attention)


def _linears_problem(family: Family, layer: nn.Module) -> str:
    for linear in family.linears(layer):
        problem = linear_problem(linear) if isinstance(linear, nn.Linear) else "is no nn.Linear"
        if problem:
            return f"a projection cannot be packed: {problem}"
    return ""


def trial(layer: nn.Module, family: Family) -> str:
    """Run a fused copy of `layer` against the layer itself on random input; "" where they agree.

    For as long as the trial takes there is one layer's packed weights beside the model.
    """
    stock, fused = _in_float32(layer), _fused(layer, family)
    hidden, masks, arguments = sample(fused, family)
    for mask, more in _calls(family, masks):
        with torch.inference_mode():
            try:
                expected, got = (
                    call(each, family, hidden, mask, arguments | more) for each in (stock, fused)
                )
            except Exception as error:  # noqa: BLE001 (whatever a foreign forward raises is the reason)
                return f"its forward cannot be called with a mask alone ({type(error).__name__}: {error})"
        if mask is not None and mask is not masks[0]:
            expected, got = (_shown(each, _padding(*hidden.shape[:2])) for each in (expected, got))
        problem = difference(expected, got)
        if isinstance(fused, FusedLayer) and stock_calls_of(fused):
            problem = next(iter(stock_calls_of(fused)))
        if problem:
            return problem
    return ""


def _fused(layer: nn.Module, family: Family) -> nn.Module:
    """A fused copy."""
    fused = _in_float32(layer)
    for linear in family.linears(fused):
        if not isinstance(linear.weight, PackedWeight):
            arena = Arena(padded(packed_bytes(linear.weight)), pages="default")
            linear.weight = PackedWeight.pack(linear.weight, arena)  # not in place: the parameter is shared
            pack(linear, arena)
    fuse(fused, family)
    return fused


def _calls(
    family: Family, masks: list[torch.Tensor | None]
) -> Iterator[tuple[torch.Tensor | None, dict[str, Any]]]:
    """Each mask, and what else says whom a token sees."""
    for mask in masks:
        yield mask, {}
        if family.causal:
            yield None if mask is None else mask.tril(), {CAUSAL: True}


def _in_float32(layer: nn.Module) -> nn.Module:
    """New modules around the same parameters and buffers, or around float32 copies of those in fewer bits."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*layer.parameters(), *layer.buffers())}
    for key, tensor in shared.items():
        if tensor.is_floating_point() and tensor.dtype is not torch.float32:
            whole = tensor.detach().float()
            shared[key] = nn.Parameter(whole, False) if isinstance(tensor, nn.Parameter) else whole
    return copy.deepcopy(layer, shared)


def sample(
    layer: nn.Module, family: Family, batch: int = 2, length: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, list[torch.Tensor | None], dict[str, Any]]:
    """Hidden states (batch, length, size), masks of which the last hides tokens of the last sequence from the
    sixth on, and what else the forward takes."""
    generator = torch.Generator().manual_seed(0)  # optimizing must not advance the program's random numbers
    hidden = torch.randn(batch, length, family.linears(layer)[0].in_features, generator=generator)
    masks, arguments = CALLS[family.adapter].sample(layer, family, _padding(batch, length), generator)
    return hidden.to(dtype), masks, tree_map(lambda each: _as(each, dtype), arguments)


def _shown(result: object, hides: torch.Tensor) -> object:
    return tree_map(lambda value: without_padding(value, hides), result)


def _padding(batch: int, length: int) -> torch.Tensor:
    padding = torch.zeros(batch, length, dtype=torch.bool)
    padding[-1, 5:] = True
    return padding


def call(
    layer: nn.Module,
    family: Family,
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    arguments: dict[str, Any],
) -> Any:
    """The forward of a layer of this family for what `sample` gives."""
    masks = (mask,) if CALLS[family.adapter].masked else ()
    return layer.forward(hidden, *masks, **arguments)


def _as(value: Any, dtype: torch.dtype) -> Any:
    """Numbers of a layer of this type; positions are counted in whole ones."""
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

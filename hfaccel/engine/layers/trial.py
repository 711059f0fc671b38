"""Tests a layer's fused form against its own forward on random input, and so what its family claims."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import NoReturn

import torch
from torch import nn

from hfaccel import upstream
from hfaccel.engine.calls.code import trust, trust_again
from hfaccel.engine.calls.fallback import stock_calls_of
from hfaccel.engine.calls.kinds import indices_of, kind_of
from hfaccel.engine.calls.trials import difference, without_padding
from hfaccel.engine.kernels import Kind
from hfaccel.engine.layers.call import MASK
from hfaccel.engine.layers.families import Family, candidates, fusing_problem
from hfaccel.engine.layers.layer import FusedLayer, fuse
from hfaccel.engine.layers.mixtures import pack_mixture
from hfaccel.engine.layers.parts import inputs_of
from hfaccel.engine.replacements import Keywords
from hfaccel.engine.weights.linear import MIN_WIDTH, is_linear, linear_problem, pack, weight_class
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.upstream.of_torch import tree_map

# Batch and length: sequences with padding; one sequence of an odd number of tokens; one token.
SHAPES = ((2, 8), (1, 7), (1, 1))


class Trials:
    """The results of the trials of a model's layers: one for each kind of layer."""

    def __init__(self) -> None:
        self._problems: dict[Hashable, str] = {}
        self._indexed: dict[Hashable, bool] = {}  # kinds -> whether layers of the kind read their index

    def problem(self, layer: nn.Module, family: Family) -> str:
        """The result of `trial` for layers of this kind."""
        kind = family.name, kind_of(layer)
        if kind not in self._indexed:
            self._indexed[kind] = reads_index(layer, family)
        if self._indexed[kind]:
            kind = family.name, kind_of(layer, indexed=True)
        if kind not in self._problems:
            before = trust(layer.modules())
            self._problems[kind] = trial(layer, family)
            if self._problems[kind]:
                trust_again(before)
        return self._problems[kind]


def match(layer: nn.Module, trials: Trials | None = None) -> tuple[Family | None, str] | None:
    """The family that computes what this layer computes, or None and why the first candidate does not. None
    if the module has the parts of no family. `trials` keeps results for further layers of one kind."""
    trials = trials or Trials()
    reason = ""
    for family in candidates(layer):
        problem = (
            upstream.problem(upstream.Need.LAYERS)
            or _linears_problem(family, layer)
            or fusing_problem(family, layer)
            or trials.problem(layer, family)
        )
        if not problem:
            return family, ""
        reason = reason or problem
    return (None, reason) if reason else None


def _linears_problem(family: Family, layer: nn.Module) -> str:
    narrowest = 1 if family.call.follows else MIN_WIDTH
    for linear in family.linears(layer):
        problem = linear_problem(linear, narrowest) if is_linear(linear) else "is no nn.Linear"
        if problem:
            return f"a projection cannot be packed: {problem}"
    return ""


def trial(layer: nn.Module, family: Family) -> str:
    """Run a fused copy of `layer` against the layer itself on random input; "" if the results agree.

    During the trial, memory holds packed weights of one layer besides the model.
    """
    stock, fused = _in_float32(layer), _in_float32(layer)
    if problem := pack_mixture(family, fused):
        return problem
    _fuse(fused, family)
    problems = (_compare(stock, fused, family, *shape) for shape in SHAPES)
    return next(filter(None, problems), "")


def _compare(stock: nn.Module, fused: nn.Module, family: Family, batch: int, length: int) -> str:
    hidden, masks, arguments = sample(fused, family, batch, length)
    for mask, more in family.call.variants(fused, family, masks):
        with torch.inference_mode():
            try:
                expected, got = (
                    call(each, family, hidden, mask, arguments | more) for each in (stock, fused)
                )
            except Exception as error:  # noqa: BLE001 (whatever a foreign forward raises is the reason)
                return f"its forward cannot be called with a mask alone ({type(error).__name__}: {error})"
        if mask is not None and mask is not masks[0]:
            unread = family.call.unread(_padding(batch, length))
            expected, got = (_shown(each, unread) for each in (expected, got))
        problem = difference(expected, got)
        if isinstance(fused, FusedLayer) and stock_calls_of(fused):
            problem = next(iter(stock_calls_of(fused)))
        if problem:
            return problem
    return ""


def reads_index(layer: nn.Module, family: Family) -> bool:
    """Whether the layer's forward does more with the layer's index than pass it to a cache. The call has no
    cache."""
    twin = _in_float32(layer)
    places = list(indices_of(twin))
    for table, name in places:
        table[name] = Unreadable()
    return bool(places) and not _can_be_called(twin, family)


def _can_be_called(layer: nn.Module, family: Family) -> bool:
    hidden, masks, arguments = sample(layer, family)
    try:
        with torch.inference_mode():
            for mask, more in family.call.variants(layer, family, masks):
                if family.call.follows and more:
                    continue  # a cache reads the index
                call(layer, family, hidden, mask, arguments | more)
    except Exception:  # noqa: BLE001 (the trial with the layer's own index gives the reason)
        return False
    return True


class Unreadable:
    """Replaces a layer's index. It can only be passed on: these operators raise, others are missing."""

    def _read(self, *others: object) -> NoReturn:
        raise TypeError("the layer's index was read")

    __eq__ = __bool__ = __repr__ = _read


def _fuse(fused: nn.Module, family: Family) -> None:
    """Fuse a copy."""
    for linear in family.linears(fused):
        if not isinstance(linear.weight, PackedWeight):
            linear.weight = weight_class(linear).pack(linear.weight)  # not in place: the parameter is shared
            pack(linear)
    fuse(fused, family)


def _in_float32(layer: nn.Module) -> nn.Module:
    """New modules around the same parameters and buffers; those with fewer bits are copied to float32."""
    shared = {id(tensor): tensor for tensor in (*layer.parameters(), *layer.buffers())}
    for key, tensor in shared.items():
        rounds = isinstance(tensor, PackedWeight) and tensor.kind is not Kind.FLOAT32
        if rounds or (tensor.is_floating_point() and tensor.dtype is not torch.float32):
            whole = (tensor.unpack() if isinstance(tensor, PackedWeight) else tensor.detach()).float()
            shared[key] = nn.Parameter(whole, False) if isinstance(tensor, nn.Parameter) else whole
    return copy.deepcopy(layer, shared)


def sample(
    layer: nn.Module, family: Family, batch: int = 2, length: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, list[torch.Tensor | None], Keywords]:
    """Hidden states (batch, length, size), masks, and the other arguments of the forward. The last mask hides
    the tokens of the last sequence from the sixth on."""
    generator = torch.Generator().manual_seed(0)  # optimizing must not advance the program's random numbers
    hidden = torch.randn(batch, length, inputs_of(family.linears(layer)[0]), generator=generator)
    masks, arguments = family.call.sample(layer, family, _padding(batch, length), generator)
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
    arguments: Keywords,
) -> object:
    """Call the forward of a layer of this family with the values that `sample` returned."""
    keywords = family.call.arguments_of(layer, family, len(hidden), arguments)
    masks = (mask,) if family.call.masked else ()
    if family.call.follows:  # whose arguments come in different orders
        masks, keywords = (), {MASK: mask, **keywords}
    return family.call.result(layer.forward(hidden, *masks, **keywords), keywords)


def _as(value: object, dtype: torch.dtype) -> object:
    """A tensor of floats in this type; integers, such as positions, stay integers."""
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

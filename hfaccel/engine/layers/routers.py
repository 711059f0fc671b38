"""Routers of mixtures: how they choose experts. No attribute says whether scores are shares of softmax or
sigmoids, so a twin with random weights is called and compared with each way that the kernels know."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from hfaccel.engine.calls.kinds import kind_of
from hfaccel.engine.calls.snapshot import Table

CORRECTION = "e_score_correction_bias"  # what is added to scores for the choice alone
FACTORS = ("routed_scaling_factor", "router_scaling_factor")  # names of the factor of all scores
ROWS = 256  # of random numbers
SPREAD = 0.1  # of biases and corrections: larger ones would hide what rows decide
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Choice:
    """native/kernels/router.h says what each is."""

    chosen: int
    sigmoid: bool = False
    normalised: bool = True
    groups: int = 1
    chosen_groups: int = 1
    counted: int = 1
    least: float = 0.0
    scale: float = 1.0

    def shares(self, products: torch.Tensor, correction: torch.Tensor | None) -> torch.Tensor:
        """(rows, experts): what each expert's result counts, 0 for those that are not chosen."""
        scores = products.sigmoid() if self.sigmoid else products.softmax(-1)
        index = self._open(scores if correction is None else scores + correction).topk(self.chosen).indices
        weights = scores.gather(-1, index)
        if self.normalised:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=self.least)
        result: torch.Tensor = torch.zeros_like(scores).scatter(-1, index, weights * self.scale)
        return result

    def _open(self, ranks: torch.Tensor) -> torch.Tensor:
        """The ranks, the lowest for experts whose groups are not chosen."""
        apart = ranks.unflatten(-1, (self.groups, -1))
        of_groups = apart.topk(self.counted).values.sum(-1)
        closed = torch.ones_like(of_groups, dtype=torch.bool)
        closed.scatter_(-1, of_groups.topk(self.chosen_groups).indices, False)
        open_ranks: torch.Tensor = apart.masked_fill(closed[..., None], -torch.inf).flatten(-2)
        return open_ranks


def router_vectors(router: nn.Module, around: nn.Module) -> Iterator[tuple[Table, str]]:
    """Where the router's numbers are kept: its weight, its bias and its correction, each if there is one.
    `around`: the module of router and experts."""
    yield from ((router._parameters, name) for name in ("weight", "bias") if name in router._parameters)
    found = correction_of(router, around)
    if found is not None:
        yield found


def correction_of(router: nn.Module, around: nn.Module) -> tuple[Table, str] | None:
    """Where the correction of scores is kept: in the router or beside it. None where there is none."""
    parts = (*router.modules(), around)
    tables = (table for part in parts for table in (part._parameters, part._buffers))
    return next(((table, CORRECTION) for table in tables if table.get(CORRECTION) is not None), None)


_known: dict[Hashable, Choice | None] = {}


def choice_of(router: nn.Module, around: nn.Module) -> Choice | None:
    """How the router chooses; None for a way that the kernels do not know. Routers of one kind are called
    once."""
    passed = CORRECTION in around._buffers or CORRECTION in around._parameters
    kind = kind_of(router), passed
    if kind not in _known:
        _known[kind] = _recognised(router, passed)
    return _known[kind]


def _recognised(router: nn.Module, passed: bool) -> Choice | None:
    """`passed`: the correction is an argument of its forward."""
    twin: Any = _twin(router)
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(ROWS, twin.weight.shape[1], generator=generator)
    given = [torch.randn(len(twin.weight), generator=generator) * SPREAD] if passed else []
    found = correction_of(twin, twin)
    correction = given[0] if given else None if found is None else found[0][found[1]].flatten()
    with torch.no_grad(), torch.inference_mode(False):
        try:
            _, weights, index = type(twin).forward(twin, rows, *given)
        except Exception:  # noqa: BLE001 - whatever a forward raises, it is not one that is known
            return None
        products = nn.functional.linear(rows, twin.weight, twin._parameters.get("bias"))
        wanted = torch.zeros_like(products).scatter(-1, index, weights)
        for choice in _choices(twin):
            got = choice.shares(products, correction)
            if torch.allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE):
                return choice
    return None


def _choices(router: Any) -> Iterator[Choice]:
    """What may be meant by the router's attributes."""
    least = float(getattr(router, "norm_min", 0.0))
    scale = next((float(getattr(router, name)) for name in FACTORS if hasattr(router, name)), 1.0)
    for sigmoid, normalised in product((False, True), (True, False)):
        plain = Choice(router.top_k, sigmoid, normalised, least=least, scale=scale)
        yield plain
        yield from _grouped(plain, router)


def _grouped(plain: Choice, router: Any) -> Iterator[Choice]:
    groups, chosen = (getattr(router, name, None) for name in ("num_group", "topk_group"))
    experts = len(router.weight)
    if not isinstance(groups, int) or not isinstance(chosen, int) or groups < 2 or experts % groups:
        return
    size = experts // groups
    for counted in (1, 2):
        if counted <= size and plain.chosen <= chosen * size and chosen <= groups:
            yield replace(plain, groups=groups, chosen_groups=chosen, counted=counted)


def _twin(router: nn.Module) -> nn.Module:
    """The same router with random numbers: what the real ones do not show may be different later."""
    generator, memo = torch.Generator().manual_seed(1), {}
    for tensor in (*router.parameters(), *router.buffers()):
        spread = SPREAD if tensor is not router.weight else tensor.shape[1] ** -0.5
        values = torch.randn(tensor.shape, generator=generator) * spread
        memo[id(tensor)] = nn.Parameter(values, False) if isinstance(tensor, nn.Parameter) else values
    return copy.deepcopy(router, memo)

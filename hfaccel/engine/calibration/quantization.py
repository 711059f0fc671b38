"""Measures the quantization error of int8 in each linear layer, and decides which layers keep more bits.

The kernels multiply some rows by a weight packed in int8, and the result is compared with the layer's own.
The rows come from the user's samples if there are any. Otherwise no data is needed: an encoder layer runs on
rows like those that the norm before the layer makes (a normally distributed number for each channel, times
the norm's weight, plus its bias), so that its linear layers see typical rows. A linear layer about whose
input nothing is known sees normally distributed numbers.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeVar

import torch
from torch import nn

from hfaccel.engine.calibration.smoothing import norms_before
from hfaccel.engine.kernels import Kind, multiplies
from hfaccel.engine.layers.families import Family
from hfaccel.engine.layers.trial import call, sample
from hfaccel.engine.weights.linear import fits, linear, weight_class
from hfaccel.engine.weights.packed import PackedWeight

ROWS = 32  # of a call; the median over this many rows is steady
BOUND = 0.06  # relative error. all-MiniLM-L6-v2 has 1 to 2.5 %, on texts up to 4.4 %
FEW = 8  # rows; with fewer, a constant column cannot be told from a varying one
FLOOR = 1e-3  # of the columns' mean spread: the least spread that a column counts with
TINY = torch.finfo(torch.float32).tiny

Layers = Sequence[tuple[nn.Module, Family]]
Errors = Mapping[torch.Tensor, float]  # weight -> the relative error of its results
W = TypeVar("W", bound=Hashable)


@dataclass(frozen=True)
class Verdict:
    """The outcome of the trial of int8, by weight."""

    packed: dict[torch.Tensor, PackedWeight] = field(default_factory=dict)  # in int8, each in its own memory
    errors: dict[torch.Tensor, float] = field(default_factory=dict)
    higher: set[torch.Tensor] = field(default_factory=set)  # weights whose error is too large

    @property
    def higher_kind(self) -> Kind:
        """The kind in which the weights of `higher` stay."""
        return Kind.BFLOAT16 if multiplies(Kind.BFLOAT16) else Kind.FLOAT32

    def kind(self, weight: torch.Tensor) -> Kind:
        return self.higher_kind if weight in self.higher else Kind.INT8


def try_int8(
    model: nn.Module,
    layers: Layers,
    linears: Sequence[nn.Linear],
    factors: Mapping[torch.Tensor, torch.Tensor],
    samples: Sequence[Mapping[str, torch.Tensor]] = (),
) -> Verdict:
    """Pack copies of the weights of `linears` in int8, and measure which of them must keep more bits.

    `layers`: the layers to be fused; their linear layers are among `linears`. `factors`: from smooth_layers.
    If the model rejects a sample, the model's exception is raised.
    """
    meter = Meter(factors)
    with torch.no_grad():
        for one in samples:
            with meter.watching(linears, one.get("attention_mask")):
                model(**one)
        for layer, family, norm, _ in norms_before(model, layers):
            unseen = [each for each in family.linears(layer) if each.weight not in meter.errors]
            if unseen:
                with meter.watching(unseen):
                    _run(layer, family, norm)
        for each in linears:
            if each.weight not in meter.errors:
                noise = _noise(each)
                meter.see(each, noise, each.forward(noise))
    higher = too_lossy(meter.errors, _groups(layers))
    kept = {weight: packed for weight, packed in meter.packed.items() if weight not in higher}
    return Verdict(kept, meter.errors, higher)


@dataclass
class Meter:
    """Measures the error of linear layers in the calls that it watches."""

    factors: Mapping[torch.Tensor, torch.Tensor]
    packed: dict[torch.Tensor, PackedWeight] = field(default_factory=dict)
    errors: dict[torch.Tensor, float] = field(default_factory=dict)  # the largest of all calls

    @contextmanager
    def watching(self, modules: Iterable[nn.Linear], mask: torch.Tensor | None = None) -> Iterator[None]:
        """Watch calls of these modules. `mask`: (batch, sequence length), 0 for padding, which does not
        count."""

        def hook(module: nn.Linear, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
            rows = given[0]
            if mask is not None and mask.shape == rows.shape[:-1]:
                rows, result = rows[mask.bool()], result[mask.bool()]
            self.see(module, rows, result)

        handles = [module.register_forward_hook(hook) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def see(self, module: nn.Linear, rows: torch.Tensor, result: torch.Tensor) -> None:
        """`rows`: (..., in_features), and the module's `result` of them: (..., out_features)."""
        weight = module.weight
        if rows.numel() == 0 or not fits(module.bias):
            return
        if weight not in self.packed:
            cls, factors = weight_class(module), self.factors.get(weight)
            self.packed[weight] = cls.pack(weight, None, Kind.INT8, factors)
        rows, result = (_some(each.flatten(0, -2)).float() for each in (rows, result))
        error = quantization_error(result, linear(rows, self.packed[weight], module.bias))
        self.errors[weight] = max(error, self.errors.get(weight, 0.0))


def quantization_error(expected: torch.Tensor, got: torch.Tensor) -> float:
    """The relative error of a (rows, columns) result: for each row the norm of the difference divided by the
    norm of `expected`; of these the median.

    Columns are centred and scaled by their spread, both as medians, so that neither constants nor a few
    columns or rows that are much larger than all others hide the error of the rest.
    """
    centred, spread = expected, expected.square().mean().sqrt()
    if len(expected) >= FEW:
        centred = expected - expected.median(0).values
        spread = centred.abs().median(0).values
    spread = spread.clamp(min=FLOOR * spread.mean().item() + TINY)
    lost, whole = (got - expected) / spread, centred / spread
    shares: torch.Tensor = lost.norm(dim=1) / whole.norm(dim=1).clamp(min=TINY)
    return shares.median().item()


def too_lossy(errors: Mapping[W, float], groups: Sequence[Sequence[W]], bound: float = BOUND) -> set[W]:
    """The weights with an error above `bound`, and the weights that must be of the same kind. `groups`:
    weights that multiply the same rows; a weight may be in several groups."""
    found: set[W] = set()
    more = {weight for weight, error in errors.items() if error > bound}
    while more:
        found |= more
        more = {weight for group in groups if not found.isdisjoint(group) for weight in group} - found
    return found


def _groups(layers: Layers) -> list[list[torch.Tensor]]:
    """In a fused layer, query, key and value must be of one kind, and so must gate and up."""
    return [
        [attrgetter(path)(layer).weight for path in paths]
        for layer, family in layers
        for paths in (family.attention_inputs, family.wide_inputs)
    ]


def _some(rows: torch.Tensor) -> torch.Tensor:
    """At most ROWS rows, evenly spread."""
    if len(rows) <= ROWS:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, ROWS).long()]


def _run(layer: nn.Module, family: Family, norm: nn.Module | None) -> None:
    """Run the layer's own forward on tokens like those that `norm` makes: ROWS sequences of one token,
    because attention over many random tokens gives all of them the same mean."""
    dtype = family.linears(layer)[0].weight.dtype
    hidden, (mask, *_), arguments = sample(layer, family, ROWS, 1, dtype)
    if not family.norm_first:
        hidden = _like(norm, hidden).to(dtype)
    call(layer, family, hidden, mask, arguments)


def _like(norm: nn.Module | None, normal: torch.Tensor) -> torch.Tensor:
    weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    if weight is None or weight.shape != normal.shape[-1:]:
        return normal  # no norm, or a projection of narrower embeddings comes after it
    made: torch.Tensor = normal * weight
    return made if bias is None else made + bias


def _noise(module: nn.Linear) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)  # the program's random numbers are left alone
    in_features = weight_class(module).layout_of(Kind.INT8, module.weight.shape).columns
    return torch.randn(ROWS, in_features, generator=generator).to(module.weight.dtype)


# The report


def reasons(verdict: Verdict, paths: Mapping[str, torch.Tensor]) -> dict[torch.Tensor, str]:
    """The report's line about each weight. `paths`: paths of linear layers -> their weights."""
    errors, higher = verdict.errors, verdict.higher
    fine = [error for weight, error in errors.items() if weight not in higher and error == error]
    told = f"packed in {Kind.INT8.label}"
    if fine:
        told += f", which loses {statistics.median(fine):.1%} of a result, {max(fine):.1%} at most"
    said = dict.fromkeys(errors, told)
    if higher:
        kept = brief(path for path, weight in paths.items() if weight in higher)
        worst = max(errors.get(weight, 0.0) for weight in higher)
        text = f"kept in {verdict.higher_kind.label}: int8 would lose up to {worst:.0%} of a result"
        said |= dict.fromkeys(higher, f"{text} ({BOUND:.0%} is allowed): {', '.join(kept)}")
    return said


def brief(paths: Iterable[str]) -> list[str]:
    """Join paths that differ only in their first number: encoder.layer.{0,2}.output.dense."""
    numbers: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        number = re.search(r"\d+", path)
        start, end = number.span() if number else (len(path), len(path))
        numbers.setdefault((path[:start], path[end:]), []).append(path[start:end])
    return [
        before + (found[0] if len(found) == 1 else "{" + ",".join(found) + "}") + after
        for (before, after), found in numbers.items()
    ]

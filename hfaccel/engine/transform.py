"""A model -> the same model, with its layers fused and its linear layers packed; and back."""

from __future__ import annotations

import copy
from collections import Counter
from operator import attrgetter

import torch
from torch import nn

from hfaccel.engine.layer import FusedLayer, PostNormLayer, fuse, match, unfuse
from hfaccel.engine.linear import JoinedLinear, PackedLinear, arena_bytes, linear_problem, pack, unpack
from hfaccel.memory import Arena, padded
from hfaccel.outcome import Outcome, merge

# Largest difference between a layer's own forward and the fused one, relative to the largest value.
# float32 with other orders of summation stays below 1e-5; a different computation is far above.
TOLERANCE = 1e-4


def transform(model: nn.Module, *, huge_pages: bool = True) -> tuple[Outcome, ...]:
    """Fuse and pack what pays, in place. Parameters keep identity, shape and values."""
    outcomes: list[Outcome] = []
    layers = _select_layers(model, outcomes)
    linears = _select_linears(model, layers, outcomes)
    arena = Arena(_size(layers, linears), huge=huge_pages)
    for layer, row in layers:
        fuse(layer, row, arena)
        outcomes.append(Outcome(f"{row.family} layer", True, "query, key and value in one GEMM; fused layer"))
    for linear in linears:
        pack(linear, arena)
        outcomes.append(Outcome("linear layer", True, "packed for oneDNN's GEMM"))
    outcomes.append(_pages(arena))
    return merge(outcomes)


def restore(model: nn.Module) -> None:
    """Undo transform, in place: classes and memory layout as before, values untouched."""
    for module in model.modules():
        if isinstance(module, FusedLayer):
            unfuse(module)
        elif isinstance(module, PackedLinear | JoinedLinear):
            unpack(module)


def stock_calls(model: nn.Module) -> Counter[str]:
    """How often the model's fused layers took the stock path, by reason."""
    total: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, FusedLayer):
            total.update(module._hfaccel_stock_calls)
    return total


def _select_layers(model: nn.Module, outcomes: list[Outcome]) -> list[tuple[nn.Module, PostNormLayer]]:
    selected: list[tuple[nn.Module, PostNormLayer]] = []
    verdicts: dict[type[nn.Module], str] = {}  # of the trial: one for each class of layer
    for layer in model.modules():
        found = match(layer)
        if found is None:
            continue
        row, problem = found
        if not problem:
            if type(layer) not in verdicts:
                verdicts[type(layer)] = trial(layer, row)
            problem = verdicts[type(layer)]
        if problem:
            outcomes.append(Outcome(f"{type(layer).__name__}", False, f"not fused: {problem}"))
        else:
            selected.append((layer, row))
    return selected


def trial(layer: nn.Module, row: PostNormLayer) -> str:
    """Run a fused copy of `layer` against the layer itself on random input; "" where they agree.

    The copy has one layer's weights of its own, for as long as the trial takes.
    """
    fused = copy.deepcopy(layer)
    fuse(fused, row, Arena(0))
    size = attrgetter(row.query)(layer).in_features
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 8, size, generator=generator)
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    mask[1, :, :, 5:] = False
    for attention_mask in (None, mask):
        with torch.inference_mode():
            try:
                expected, got = layer(hidden, attention_mask), fused(hidden, attention_mask)
            except Exception as error:  # noqa: BLE001 (whatever a foreign forward raises is the reason)
                return f"its forward cannot be called with a mask alone ({type(error).__name__}: {error})"
        if isinstance(fused, FusedLayer) and fused._hfaccel_stock_calls:
            return next(iter(fused._hfaccel_stock_calls))
        if type(expected) is not torch.Tensor:
            return f"its forward returns a {type(expected).__name__}"
        difference = (expected - got).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
            return f"a trial differed by {difference:.1e} from its own forward"
    return ""


def _select_linears(
    model: nn.Module, layers: list[tuple[nn.Module, PostNormLayer]], outcomes: list[Outcome]
) -> list[nn.Linear]:
    joined = {
        id(attrgetter(path)(layer)) for layer, row in layers for path in (row.query, row.key, row.value)
    }
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    selected: list[nn.Linear] = []
    for module in model.modules():
        if not isinstance(module, nn.Linear) or id(module) in joined:
            continue
        problem = linear_problem(module)
        if not problem and id(module.weight) in embeddings:
            problem = "its weight is tied to an embedding, which needs it row by row"
        if problem:
            outcomes.append(Outcome("linear layer", False, f"not packed: {problem}"))
        else:
            selected.append(module)
    return selected


def _size(layers: list[tuple[nn.Module, PostNormLayer]], linears: list[nn.Linear]) -> int:
    size = sum(arena_bytes(linear) for linear in linears)
    for layer, row in layers:
        query = attrgetter(row.query)(layer)
        size += padded(3 * query.weight.numel() * 4) + padded(3 * query.out_features * 4)
    return size


def _pages(arena: Arena) -> Outcome:
    if arena.used == 0:
        return Outcome("huge pages", False, arena.problem or "no weight was moved")
    return Outcome(
        "huge pages",
        not arena.problem,
        arena.problem or f"{arena.used / 2**20:.1f} MiB of weights in memory advised for huge pages",
    )

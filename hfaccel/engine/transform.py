"""A model -> the same model, with its layers fused and its linear layers packed; and back."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import nn

from hfaccel.engine.layer import FusedLayer, PostNormLayer, fuse, match, unfuse
from hfaccel.engine.linear import PackedLinear, linear_problem, pack, unpack
from hfaccel.engine.packed import PackedWeight, packed_bytes, place_side_by_side
from hfaccel.memory import Arena, pack_, padded
from hfaccel.outcome import Outcome, merge

# Largest difference between a layer's own forward and the fused one, relative to the largest value.
# float32 with other orders of summation stays below 1e-5; a different computation is far above.
TOLERANCE = 1e-4

Layers = list[tuple[nn.Module, PostNormLayer]]


def transform(model: nn.Module, *, huge_pages: bool = True) -> tuple[Outcome, ...]:
    """Fuse and pack what pays, in place. Parameters keep identity, shape and values."""
    outcomes: list[Outcome] = []
    layers = _select_layers(model, outcomes)
    linears = _select_linears(model, layers, outcomes)
    arena = Arena(_size(linears), pages="thp" if huge_pages else "default")
    for linear in linears:
        problem = pack(linear, arena)
        reason = f"not packed: {problem}" if problem else "packed for oneDNN's GEMM"
        outcomes.append(Outcome("linear layer", not problem, reason))
    for layer, row in layers:
        fuse(layer, row)
        outcomes.append(Outcome(f"{row.family} layer", True, "fused; query, key and value in one GEMM"))
    outcomes.append(_pages(arena))
    if huge_pages:
        outcomes.append(_rest_of(model))
    return merge(outcomes)


def restore(model: nn.Module) -> None:
    """Undo transform, in place: classes and memory layout as before, values untouched."""
    for module in model.modules():
        if isinstance(module, FusedLayer):
            unfuse(module)
        elif isinstance(module, PackedLinear):
            unpack(module)


def stock_calls(model: nn.Module) -> Counter[str]:
    """How often the model's fused layers took the stock path, by reason."""
    total: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, FusedLayer):
            total.update(module._hfaccel_stock_calls)
    return total


def _select_layers(model: nn.Module, outcomes: list[Outcome]) -> Layers:
    selected: Layers = []
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
            outcomes.append(Outcome(type(layer).__name__, False, f"not fused: {problem}"))
        else:
            selected.append((layer, row))
    return selected


def trial(layer: nn.Module, row: PostNormLayer) -> str:
    """Run a fused copy of `layer` against the layer itself on random input; "" where they agree.

    The copy has one layer's weights of its own, for as long as the trial takes.
    """
    fused = copy.deepcopy(layer)
    linears = row.linears(fused)
    arena = Arena(_size(linears), pages="default")
    for linear in linears:
        pack(linear, arena)
    place_side_by_side([linear.weight for linear in linears[:3]])
    fuse(fused, row)
    hidden, mask = _sample(linears[0].in_features)
    for attention_mask in (None, mask):
        with torch.inference_mode():
            try:
                expected, got = layer(hidden, attention_mask), fused(hidden, attention_mask)
            except Exception as error:  # noqa: BLE001 (whatever a foreign forward raises is the reason)
                return f"its forward cannot be called with a mask alone ({type(error).__name__}: {error})"
        problem = _difference(expected, got)
        if isinstance(fused, FusedLayer) and fused._hfaccel_stock_calls:
            problem = next(iter(fused._hfaccel_stock_calls))
        if problem:
            return problem
    return ""


def _sample(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (2, 8, size), and a mask that hides three tokens of the second sequence."""
    hidden = torch.randn(2, 8, size, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    mask[1, :, :, 5:] = False
    return hidden, mask


def _difference(expected: object, got: object) -> str:
    if not isinstance(expected, torch.Tensor) or not isinstance(got, torch.Tensor):
        return f"its forward returns a {type(expected).__name__}"
    difference = (expected - got).abs().max().item()
    if difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        return ""
    return f"a trial differed by {difference:.1e} from its own forward"


def _select_linears(model: nn.Module, layers: Layers, outcomes: list[Outcome]) -> list[nn.Linear]:
    """Those to pack, in memory order: the fused layers' first, each layer's side by side."""
    of_layers = {id(linear): linear for layer, row in layers for linear in row.linears(layer)}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    selected: list[nn.Linear] = list(of_layers.values())
    for module in model.modules():
        if not isinstance(module, nn.Linear) or id(module) in of_layers:
            continue
        problem = linear_problem(module)
        if not problem and id(module.weight) in embeddings:
            problem = "its weight is tied to an embedding, which needs it row by row"
        if problem:
            outcomes.append(Outcome("linear layer", False, f"not packed: {problem}"))
        else:
            selected.append(module)
    return selected


def _size(linears: list[nn.Linear]) -> int:
    weights = {id(linear.weight): linear.weight for linear in linears}
    dense = (weight for weight in weights.values() if not isinstance(weight, PackedWeight))
    return sum(padded(packed_bytes(weight)) for weight in dense)


def _rest_of(model: nn.Module) -> Outcome:
    """Embeddings, norms and biases: everything that is not packed."""
    packed = pack_(model)
    moved, stayed = packed.moved / 2**20, packed.in_place / 2**20
    size = f"other tensors: {moved:.1f} MiB moved next to each other, {stayed:.1f} MiB made huge in place"
    return Outcome("huge pages", not packed.problem, packed.problem or size)


def _pages(arena: Arena) -> Outcome:
    if arena.used == 0:
        return Outcome("huge pages", False, arena.problem or "no weight was moved")
    size = f"{arena.used / 2**20:.1f} MiB of weights in memory advised for huge pages"
    return Outcome("huge pages", not arena.problem, arena.problem or size)

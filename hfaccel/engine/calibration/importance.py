"""How much the rounding of each input of a linear layer counts, measured on typical inputs of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

LEAST = 0.01  # of the mean: what inputs count at least, for those that the sample leaves at zero


def measure_importance(
    model: nn.Module, linears: Iterable[nn.Linear], samples: Sequence[Mapping[str, torch.Tensor]]
) -> dict[torch.Tensor, torch.Tensor]:
    """By weight, the (in_features,) mean squares of a layer's inputs, padding left out. A weight whose layer
    no sample reaches has none. If the model rejects a sample, the model's exception is raised.

    The squared error of a result is the sum over inputs of their squares times the squared errors of their
    weights, if inputs are independent of each other."""
    sums: dict[torch.Tensor, torch.Tensor] = {}
    mask: torch.Tensor | None = None

    def see(module: nn.Linear, given: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        rows, weight = (given[0] if given else named["input"]).detach(), module.weight
        if mask is not None and mask.shape == rows.shape[:-1]:
            rows = rows[mask.bool()]
        squares = rows.reshape(-1, rows.shape[-1]).float().square().sum(0)
        sums[weight] = squares + sums.get(weight, 0)

    handles = [module.register_forward_pre_hook(see, with_kwargs=True) for module in linears]
    try:
        with torch.no_grad():
            for one in samples:
                mask = one.get("attention_mask")
                model(**one)
    finally:
        for handle in handles:
            handle.remove()
    return {weight: _bounded(squares) for weight, squares in sums.items()}


def _bounded(squares: torch.Tensor) -> torch.Tensor:
    mean = squares.mean()
    if not mean.isfinite() or mean == 0:
        return torch.ones_like(squares)
    return (squares / mean).clamp_(min=LEAST)

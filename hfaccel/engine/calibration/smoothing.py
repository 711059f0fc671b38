"""Factors that make activations easier to round to int8, found without any data.

A few channels of a LayerNorm's output are much larger than the others, the same ones for all tokens, because
the norm's weight and bias are large there. With one scale per token these channels leave few steps to the
rest. So each channel is multiplied by a factor before rounding, and the weights of that channel are divided
by the factor. What helps activations harms weights; ALPHA divides the burden between both. (SmoothQuant, Xiao
et al. 2022, arXiv:2211.10438; there the size of activations comes from samples.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

import torch
from torch import nn

from hfaccel.engine.layers.families import Family
from hfaccel.engine.norms import norm_kind
from hfaccel.engine.weights.layout import EXACT

MANY = 3.0  # times the median column's largest weight: a larger weight leaves the others too few steps
ALPHA = 0.4
SPREAD = 3.0  # standard deviations of a normalised number that the range covers
LEAST = 1e-5


def smoothing(norm: nn.Module | None, weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """(features,) factors for activations that come from `norm` and are multiplied by all of `weights`
    (each (out_features, features)); None where nothing is known of the activations."""
    weight, bias = (None if norm is None else norm._parameters.get(name) for name in ("weight", "bias"))
    if norm is None or norm_kind(norm) is None or weight is None:
        return None
    if weight.numel() != weights[0].shape[1]:
        return None  # something lies between them: a projection of narrower embeddings
    size = weight.detach().float().abs() * SPREAD
    if bias is not None:
        size = size + bias.detach().float().abs()
    largest = torch.stack([weight.detach().float().abs().amax(0) for weight in weights]).amax(0)
    factors = largest.clamp(min=LEAST) ** (1 - ALPHA) / size.clamp(min=LEAST) ** ALPHA
    return factors / factors.mean()


def exceptions(weight: torch.Tensor) -> torch.Tensor | None:
    """(features,) factors for a weight (out_features, features): 0 for the few inputs whose weights are much
    larger than all others', so that these are not rounded, 1 for the rest. None where none are.

    Activations before them tend to be large too (GELU's, of a few neurons), so no factor helps both. In
    all-MiniLM-L6-v2 they make half of what int8 loses in the last linear layer of each feed-forward.
    """
    largest = weight.detach().float().abs().amax(0)
    found = largest.topk(min(EXACT, len(largest)))
    outliers = found.indices[found.values > MANY * largest.median()]
    return torch.ones_like(largest).index_fill_(0, outliers, 0.0) if len(outliers) else None


def norms_before(
    model: nn.Module, layers: Sequence[tuple[nn.Module, Family]]
) -> Iterator[tuple[nn.Module, Family, nn.Module | None, nn.Module | None]]:
    """Each layer, in the model's order, with the norms that make the inputs of its attention and of its
    feed-forward; None where that of attention is not known."""
    families = dict(layers)
    before: nn.Module | None = None  # the last norm registered, which makes the input where norms come last
    for module in model.modules():
        family = families.get(module)
        if family is not None:
            attention_norm, output_norm = family.norms(module)
            if family.norm_first:
                yield module, family, attention_norm, output_norm
            else:
                yield module, family, before, attention_norm
            before = output_norm
        elif isinstance(module, nn.LayerNorm):
            before = module


def smooth_layers(
    model: nn.Module, layers: Sequence[tuple[nn.Module, Family]]
) -> dict[torch.Tensor, torch.Tensor]:
    """The factors of linear layers' weights: for the inputs of attention and of the feed-forward, and,
    where some of its own inputs stand out, for the end of the feed-forward."""
    factors: dict[torch.Tensor, torch.Tensor] = {}
    for layer, family, of_attention, of_wide in norms_before(model, layers):
        for norm, paths in ((of_attention, family.attention_inputs), (of_wide, family.wide_inputs)):
            weights: list[torch.Tensor] = [attrgetter(path)(layer).weight for path in paths]
            # The last alone (of query, key and value: the value): its errors are what is seen in the
            # result, while softmax forgives those of scores.
            found = smoothing(norm, weights[-1:])
            if found is not None:
                factors.update(dict.fromkeys(weights, found))
        down = attrgetter(family.down)(layer)
        found = exceptions(down.weight) if isinstance(down, nn.Linear) else None
        if found is not None:
            factors[down.weight] = found
    return factors

"""Factors that make activations easier to round to int8, found without any data.

In a LayerNorm's output a few channels are much larger than the others. They are the same ones for all tokens,
because the norm's weight and bias are large there. With one scale per token, these channels leave few steps
to the rest. So each channel is multiplied by a factor before rounding, and the weights of that channel are
divided by the factor. A factor that helps activations harms weights; ALPHA balances the two. (SmoothQuant,
Xiao et al. 2022, arXiv:2211.10438, which takes the size of activations from samples.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

import torch
from torch import nn

from hfaccel.engine.layers.families import Family
from hfaccel.engine.norms import norm_weight
from hfaccel.engine.weights.layout import EXACT

MANY = 3.0  # times the median column's largest weight: a larger weight leaves the others too few steps
ALPHA = 0.4
SPREAD = 3.0  # the range covers this many standard deviations of a normalised number
LEAST = 1e-5


def smoothing(norm: nn.Module | None, weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """(features,) factors for activations that come from `norm` and are multiplied by all of `weights`
    (each (out_features, features)); None if nothing is known about the activations."""
    weight = None if norm is None else norm_weight(norm)
    if norm is None or weight is None:
        return None
    bias = norm._parameters.get("bias")
    if weight.numel() != weights[0].shape[1]:
        return None  # a projection of narrower embeddings lies between the norm and the weights
    size = weight.abs() * SPREAD
    if bias is not None:
        size = size + bias.detach().float().abs()
    largest = torch.stack([weight.detach().float().abs().amax(0) for weight in weights]).amax(0)
    factors = largest.clamp(min=LEAST) ** (1 - ALPHA) / size.clamp(min=LEAST) ** ALPHA
    return factors / factors.mean()


def exceptions(weight: torch.Tensor) -> torch.Tensor | None:
    """(features,) factors for a weight (out_features, features): 0 for the few inputs whose weights are much
    larger than all others, so that these weights are not rounded; 1 for the rest. None if there are none.

    The activations of these inputs tend to be large too (a few neurons after GELU), so no factor helps both.
    In all-MiniLM-L6-v2 these inputs cause half of int8's error in the last linear layer of each feed-forward.
    """
    largest = weight.detach().float().abs().amax(0)
    found = largest.topk(min(EXACT, len(largest)))
    outliers = found.indices[found.values > MANY * largest.median()]
    return torch.ones_like(largest).index_fill_(0, outliers, 0.0) if len(outliers) else None


def norms_before(
    model: nn.Module, layers: Sequence[tuple[nn.Module, Family]]
) -> Iterator[tuple[nn.Module, Family, nn.Module | None, nn.Module | None]]:
    """Each layer, in the model's order, with the norms that make the inputs of its attention and of its
    feed-forward; None if the norm before attention is not known."""
    families = dict(layers)
    before: nn.Module | None = None  # the norm registered last: it makes the input of a post-norm layer
    for module in model.modules():
        family = families.get(module)
        if family is not None:
            attention_norm, output_norm = (
                attrgetter(path)(module) if path else None
                for path in (family.attention_norm, family.output_norm)
            )
            if family.norm_first:
                yield module, family, attention_norm, output_norm
            else:
                of_cross = attrgetter(family.cross_norm)(module) if family.cross_norm else None
                yield module, family, before, of_cross or attention_norm
            before = output_norm
        elif isinstance(module, nn.LayerNorm):
            before = module


def smooth_layers(
    model: nn.Module, layers: Sequence[tuple[nn.Module, Family]]
) -> dict[torch.Tensor, torch.Tensor]:
    """The factors for the weights of linear layers: for those at the inputs of attention and of the
    feed-forward, and for the feed-forward's last one if some of its inputs stand out."""
    factors: dict[torch.Tensor, torch.Tensor] = {}
    for layer, family, of_attention, of_wide in norms_before(model, layers):
        for norm, paths in ((of_attention, family.attention_inputs), (of_wide, family.wide_inputs)):
            if not paths:  # experts are not smoothed
                continue
            weights: list[torch.Tensor] = [attrgetter(path)(layer).weight for path in paths]
            # Only the last weight (of query, key and value: the value) decides: its errors appear in the
            # result, while softmax evens out errors in scores.
            found = smoothing(norm, weights[-1:])
            if found is not None:
                factors.update(dict.fromkeys(weights, found))
        down = attrgetter(family.down)(layer) if family.down else None
        found = exceptions(down.weight) if isinstance(down, nn.Linear) else None
        if found is not None and down is not None:
            factors[down.weight] = found
    return factors

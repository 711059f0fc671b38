"""What all trials share: comparing a module's own result with the replacement's, for the same input."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Largest difference between a module's own forward and the fused one, relative to the largest value. Another
# order of summation in float32 stays below 1e-5; a different computation is far above.
TOLERANCE = 1e-4


# The same where a residual stream in bfloat16 was rounded between layers, and the other was not.
ROUNDED = 0.05


def difference(expected: object, got: object, tolerance: float = TOLERANCE) -> str:
    """Why a forward's result is not the expected one; "" if they are equal up to rounding."""
    if isinstance(expected, tuple) and isinstance(got, tuple) and len(expected) == len(got):
        return next(
            filter(None, (difference(*pair, tolerance) for pair in zip(expected, got, strict=True))), ""
        )
    if expected is None and got is None:
        return ""
    if not isinstance(expected, torch.Tensor) or not isinstance(got, torch.Tensor):
        return f"its forward returns a {type(expected).__name__}"
    if expected.shape != got.shape:
        return f"its forward returns the shape {tuple(expected.shape)}"
    if expected.numel() == 0:
        return ""
    expected, got = expected.double(), got.double()
    far = (expected - got).abs().max().item()
    if far <= tolerance * max(1.0, expected.abs().max().item()):  # false for NaN
        return ""
    return f"a trial differed by {far:.1e} from its own forward"


def without_padding(value: object, hides: torch.Tensor) -> object:
    """A tensor with a row for each position gets 0 where `hides` (batch, length) is true; any other value is
    returned unchanged."""
    if not isinstance(value, torch.Tensor) or value.dim() > 3 or value.shape[:2] != hides.shape:
        return value
    return value.masked_fill(hides.view(*hides.shape, *[1] * (value.dim() - 2)), 0)


@contextmanager
def unwatched(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Take the user's hooks away for a while: they must not see a trial."""
    kept = [(module, module._forward_hooks, module._forward_pre_hooks) for module in modules]
    try:
        for module, _, _ in kept:
            module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for module, after, before in kept:
            module._forward_hooks, module._forward_pre_hooks = after, before

"""Whether a model computes what it computed before: on samples, within the tolerance of its precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from hfaccel.export.interface import Sample
from hfaccel.precision import Precision

# Largest relative error of an output, as length of the difference over length of the vector. Orders of
# summation differ by 1e-6 in fp32; bf16 has 8 bits, int8 is what calibration makes of it.
TOLERANCE = {
    Precision.FLOAT32: 1e-4,
    Precision.BFLOAT16: 0.05,
    Precision.INT8: 0.3,
    Precision.INT8_WEIGHT_ONLY: 0.05,
    Precision.INT4_WEIGHT_ONLY: 0.3,
}


def difference(expected: object, got: object, mask: torch.Tensor | None = None) -> float:
    """The largest relative error among the tensors of two outputs; infinite where they do not match.

    `mask`, (batch, sequence length), is zero where a token is padding: its state may be anything.
    """
    one, two = list(_tensors(expected)), list(_tensors(got))
    if type(expected) is not type(got) or [name for name, _ in one] != [name for name, _ in two]:
        return float("inf")
    pairs = zip(one, two, strict=True)
    return max((_relative(wanted, given, mask) for (_, wanted), (_, given) in pairs), default=0.0)


def _tensors(output: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of an output and their places; caches of keys and values show in what follows them."""
    if isinstance(output, torch.Tensor):
        yield name, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _tensors(value, f"{name}.{key}")
    elif isinstance(output, tuple | list):
        for number, value in enumerate(output):
            yield from _tensors(value, f"{name}.{number}")


def _relative(expected: torch.Tensor, got: torch.Tensor, mask: torch.Tensor | None) -> float:
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return float("inf")
    if mask is not None and expected.dim() > 2 and expected.shape[:2] == mask.shape:
        expected, got = expected[mask.bool()], got[mask.bool()]
    one, two = expected.double(), got.double()
    error = ((one - two).norm() / one.norm().clamp_min(1e-30)).item()
    return error if error == error else float("inf")


def varied(sample: Sample, dynamic: dict[str, tuple[int, ...]]) -> list[dict[str, torch.Tensor]]:
    """The sample, and one row of it, shorter: the sizes 1 and odd are where exports break."""
    row = {name: tensor[:1] for name, tensor in sample.items()}
    lengths = {name: tensor.shape[1] for name, tensor in sample.items() if 1 in dynamic[name]}
    if lengths:
        short = max(1, min(lengths.values()) // 2)
        row = {name: tensor[:, :short] if name in lengths else tensor for name, tensor in row.items()}
    return [dict(sample), row]


def trial(stock: Callable[..., object], other: Callable[..., object], samples: Sequence[Sample]) -> float:
    """The largest relative error of `other` over the samples."""
    with torch.inference_mode():
        return max(
            difference(stock(**sample), other(**sample), sample.get("attention_mask")) for sample in samples
        )

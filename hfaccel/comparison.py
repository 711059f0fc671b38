"""compare(): what an optimized model's results differ by, and how much faster it is, on the user's inputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from hfaccel.errors import UsageError
from hfaccel.tables import render

NEIGHBOURS = 10
Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Comparison:
    """One vector stands for each input: the mean of its real tokens' hidden states, or its logits."""

    inputs: int
    mean_cosine: float
    least_cosine: float
    largest_difference: float  # of any number of any vector
    neighbours: float  # share of each input's 10 nearest that are the same; nan for 11 inputs or fewer
    seconds: tuple[float, float]  # for all inputs: original, optimized
    times_faster: float  # median of the ratios, the two models in turn

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            ["cosine, mean", f"{self.mean_cosine:.6f}"],
            ["cosine, least", f"{self.least_cosine:.6f}"],
            ["largest difference", f"{self.largest_difference:.1e}"],
            [f"same {NEIGHBOURS} nearest neighbours", f"{self.neighbours:.1%}"],
            ["seconds, original", f"{self.seconds[0]:.2f}"],
            ["seconds, optimized", f"{self.seconds[1]:.2f}"],
            ["times faster", f"{self.times_faster:.2f}"],
        ]
        return render(f"optimized against original, {self.inputs} inputs", ["what", "value"], rows)


def compare(
    original: nn.Module,
    optimized: nn.Module,
    inputs: Sequence[str] | Sequence[Batch],
    *,
    tokenizer: Any = None,
    batch_size: int = 32,
    repeats: int = 3,
    **tokenize_kwargs: Any,
) -> Comparison:
    """Run both models on `inputs`: texts, which need `tokenizer`, or batches of tensors as the models take
    them. The models take turns, `repeats` times.

    Texts are padded in batches of `batch_size`, in their order; `tokenize_kwargs` go to the tokenizer
    (default: truncation=True). Raises UsageError for no inputs, or texts without a tokenizer.
    """
    batches = _batches(inputs, tokenizer, batch_size, tokenize_kwargs)
    vectors: list[torch.Tensor] = []
    times: tuple[list[float], list[float]] = ([], [])
    for model in (original, optimized):
        vectors.append(torch.cat([represent(model, batch) for batch in batches]).double())
    for _ in range(repeats):
        for model, taken in zip((original, optimized), times, strict=True):
            taken.append(_seconds(model, batches))
    cosines = nn.functional.cosine_similarity(vectors[0], vectors[1])
    return Comparison(
        inputs=len(vectors[0]),
        mean_cosine=cosines.mean().item(),
        least_cosine=cosines.min().item(),
        largest_difference=(vectors[0] - vectors[1]).abs().max().item(),
        neighbours=agreement(*vectors),
        seconds=(statistics.median(times[0]), statistics.median(times[1])),
        times_faster=statistics.median(one / two for one, two in zip(*times, strict=True)),
    )


def represent(model: nn.Module, batch: Batch) -> torch.Tensor:
    """(batch, numbers) of float32: the mean over real tokens of a (batch, tokens, numbers) output, or any
    other output flattened."""
    with torch.inference_mode():
        output = model(**batch)
    first: torch.Tensor = output[0].float()
    if first.dim() != 3:
        return first.flatten(1)
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != first.shape[:2]:
        return first.mean(1)
    weights = mask[..., None].float()
    return torch.where(weights > 0, first, 0.0).sum(1) / weights.sum(1)


def agreement(one: torch.Tensor, two: torch.Tensor) -> float:
    """The share of each row's nearest neighbours by cosine that are the same in both sets of vectors."""
    if len(one) <= NEIGHBOURS + 1:
        return float("nan")
    nearest = []
    for vectors in (one, two):
        unit = nn.functional.normalize(vectors)
        similarity = unit @ unit.T
        similarity.fill_diagonal_(-2)
        nearest.append(similarity.topk(NEIGHBOURS).indices)
    same = (nearest[0][:, :, None] == nearest[1][:, None, :]).any(2)
    return float(same.float().mean())


def _batches(
    inputs: Sequence[str] | Sequence[Batch], tokenizer: Any, batch_size: int, settings: dict[str, Any]
) -> list[Batch]:
    if not inputs:
        raise UsageError("compare() needs at least one input, but got none")
    texts = [each for each in inputs if isinstance(each, str)]
    if not texts:
        return [each for each in inputs if not isinstance(each, str)]
    if tokenizer is None:
        raise UsageError("compare() needs `tokenizer` for texts, but got None; or pass batches of tensors")
    settings = {"truncation": True, **settings, "padding": True, "return_tensors": "pt"}
    starts = range(0, len(texts), batch_size)
    return [tokenizer(texts[start : start + batch_size], **settings) for start in starts]


def _seconds(model: nn.Module, batches: Sequence[Batch]) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            model(**batch)
    return time.perf_counter() - start

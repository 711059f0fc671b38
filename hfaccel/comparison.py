"""compare(): how far an optimized model's results differ, and how much faster it is, on the user's inputs."""

from __future__ import annotations

import math
import statistics
import time
from collections import UserDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from hfaccel.errors import HfaccelError, UsageError, check_count
from hfaccel.memory.pack import module_of
from hfaccel.tables import render

NEIGHBOURS = 10
Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Comparison:
    """Each input is represented by a vector: the mean of its real tokens' hidden states, or its logits."""

    inputs: int
    mean_cosine: float
    least_cosine: float
    largest_difference: float  # of any number of any vector
    neighbours: float  # share of each input's 10 nearest that are the same; nan for 11 inputs or fewer
    seconds: tuple[float, float]  # for all inputs: original, optimized
    times_faster: float  # median of the ratios, the two models in turn

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            ["cosine, mean", f"{self.mean_cosine:.6f}"],
            ["cosine, least", f"{self.least_cosine:.6f}"],
            ["largest difference", f"{self.largest_difference:.1e}"],
            [f"same {NEIGHBOURS} nearest neighbours", _share(self.neighbours)],
            ["seconds, original", f"{self.seconds[0]:.2f}"],
            ["seconds, optimized", f"{self.seconds[1]:.2f}"],
            ["times faster", f"{self.times_faster:.2f}"],
        ]
        return render(f"optimized against original, {self.inputs} inputs", ["what", "value"], rows)


def compare(
    original: object,
    optimized: object,
    inputs: Sequence[str] | Sequence[Batch],
    *,
    tokenizer: Callable[..., Batch] | None = None,
    batch_size: int = 32,
    repeats: int = 3,
    **tokenize_kwargs: object,
) -> Comparison:
    """Run both models, or the models of two pipelines, on `inputs`: texts, which need a `tokenizer` (default:
    the pipeline's), or batches of tensors as the models accept them. The models take turns, `repeats` times.

    Texts are padded in batches of `batch_size`, in their order; `tokenize_kwargs` go to the tokenizer
    (default: truncation=True). Raises UsageError for no inputs, for inputs that are neither texts nor
    batches, and for texts without a tokenizer; ModelError for anything but a model; HfaccelError where the
    outputs of the models have different shapes.
    """
    models = module_of(original), module_of(optimized)
    tokenizer = getattr(original, "tokenizer", None) if tokenizer is None else tokenizer
    check_count("repeats", repeats)
    batches = _batches(inputs, tokenizer, check_count("batch_size", batch_size), tokenize_kwargs)
    vectors = [_joined([represent(model, batch) for batch in batches]).double() for model in models]
    if vectors[0].shape != vectors[1].shape:
        shapes = " and ".join(str(tuple(rows.shape)) for rows in vectors)
        raise HfaccelError(
            f"both models must give outputs of one shape, but got {shapes}; compare like with like"
        )
    return _compared(vectors, _times(models, batches, repeats))


def _times(
    models: Sequence[nn.Module], batches: Sequence[Batch], repeats: int
) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for model, taken in zip(models, times, strict=True):
            taken.append(_seconds(model, batches))
    return times


def _joined(rows: list[torch.Tensor]) -> torch.Tensor:
    """One vector for each input. Where an output's length depends on its batch, zeros fill it up."""
    longest = max(part.shape[1] for part in rows)
    return torch.cat([nn.functional.pad(part, (0, longest - part.shape[1])) for part in rows])


def _compared(vectors: Sequence[torch.Tensor], times: tuple[list[float], list[float]]) -> Comparison:
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


def _share(value: float) -> str:
    return f"too few inputs: {NEIGHBOURS + 2} or more are needed" if math.isnan(value) else f"{value:.1%}"


def represent(model: nn.Module, batch: Batch) -> torch.Tensor:
    """(batch, numbers) of float32: the mean over the real tokens of an output of (batch, tokens, numbers);
    any other output flattened, with 0 for padding."""
    with torch.inference_mode():
        output = model(**batch)
    first: torch.Tensor = output[0].float()
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != first.shape[:2]:
        return first.mean(1) if first.dim() == 3 else first.flatten(1)
    if first.dim() != 3:
        return torch.where(mask > 0, first, 0.0) if first.dim() == 2 else first.flatten(1)
    weights = mask[..., None].float()
    return torch.where(weights > 0, first, 0.0).sum(1) / weights.sum(1)


def agreement(one: torch.Tensor, two: torch.Tensor) -> float:
    """The share of each row's nearest neighbours, by cosine, that both sets of vectors have in common."""
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
    inputs: Sequence[str] | Sequence[Batch],
    tokenizer: Callable[..., Batch] | None,
    batch_size: int,
    settings: Mapping[str, object],
) -> list[Batch]:
    given = list(inputs) if isinstance(inputs, Iterable) and not isinstance(inputs, str | Mapping) else None
    if given is None:
        raise UsageError(f"compare() needs a list of texts or batches, but got one {type(inputs).__name__}")
    if not given:
        raise UsageError("compare() needs at least one input, but got none")
    texts = [each for each in given if isinstance(each, str)]
    batches = [each for each in given if isinstance(each, Mapping | UserDict)]
    if len(given) not in (len(texts), len(batches)):
        kinds = ", ".join(sorted({type(each).__name__ for each in given}))
        raise UsageError(f"compare() needs either texts or batches of tensors, but got {kinds}")
    if not texts:
        return batches
    if not callable(tokenizer):
        raise UsageError(
            f"compare() needs `tokenizer` for texts, but got {tokenizer!r}; or pass batches of tensors"
        )
    settings = {"truncation": True, **settings, "padding": True, "return_tensors": "pt"}
    starts = range(0, len(texts), batch_size)
    return [tokenizer(texts[start : start + batch_size], **settings) for start in starts]


def _seconds(model: nn.Module, batches: Sequence[Batch]) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            model(**batch)
    return time.perf_counter() - start

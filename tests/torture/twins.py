"""An optimized model beside its stock twin, and whether the two agree."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import encoders
import numpy as np
import torch
import transformers
from torch import nn

GPT2 = dict(vocab_size=500, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
# name: (class, settings of its configuration)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("BertForMaskedLM", encoders.TEXT),
    "RoBERTa": ("RobertaModel", encoders.TEXT),
    "DistilBERT": ("DistilBertForSequenceClassification", encoders.SETTINGS["DistilBERT"][1]),
    "MPNet": ("MPNetModel", encoders.TEXT),
    "ELECTRA": ("ElectraForTokenClassification", encoders.SETTINGS["ELECTRA"][1]),
    "ALBERT": ("AlbertModel", encoders.SETTINGS["ALBERT"][1]),
    "DeBERTa-v2": ("DebertaV2Model", encoders.SETTINGS["DeBERTa-v2"][1]),
    "ModernBERT": (
        "ModernBertModel",
        {**encoders.SETTINGS["ModernBERT"][1], "bos_token_id": 1, "eos_token_id": 2},
    ),
    "ViT": ("ViTModel", encoders.SETTINGS["ViT"][1]),
    "wav2vec2": ("Wav2Vec2ForCTC", encoders.SOUND),
    "T5": ("T5EncoderModel", encoders.T5),
    "GPT-2": ("GPT2LMHeadModel", GPT2),
    "BERT, pooled": ("BertModel", encoders.TEXT),
}

# The largest distance of a row of a result from stock's, relative to the row's length.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.3}
COARSE = [*TOLERANCE]  # from fine to coarse


@cache
def _made(name: str) -> nn.Module:
    kind, settings = MODELS[name]
    cls = getattr(transformers, kind)
    torch.manual_seed(0)
    return encoders.random_vectors(cls(cls.config_class(**settings)))


def make(name: str) -> Any:
    return copy.deepcopy(_made(name))


@dataclass(frozen=True)
class Inputs:
    """What a call is given. `mask`: what the attention mask hides; `others`: other ids than the padding
    token stand there."""

    mask: str = "right"
    length: int = 9
    others: bool = False
    seed: int = 0
    mask_type: torch.dtype = torch.long

    def of(self, name: str) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        if name == "ViT":
            return {"pixel_values": torch.randn(2, 3, 48, 48, generator=generator)}
        if name == "wav2vec2":
            sound = torch.randn(3, 40 * self.length, generator=generator)
            mask = self._mask(40 * self.length)
            return {"input_values": sound} | ({} if mask is None else {"attention_mask": mask})
        ids = torch.randint(5, 400, (3, self.length), generator=generator)
        mask = self._mask(self.length)
        if mask is None:
            return {"input_ids": ids}
        if not self.others:
            ids = ids.masked_fill(mask == 0, _made(name).config.pad_token_id or 0)
        return {"input_ids": ids, "attention_mask": mask.to(self.mask_type)}

    def _mask(self, length: int) -> torch.Tensor | None:
        if self.mask == "none":
            return None
        mask = torch.ones(3, length, dtype=torch.long)
        if self.mask == "full":
            return mask
        mask[1, (length + 1) // 2 :] = 0
        mask[2, 1 if self.mask != "empty" else 0 :] = 0
        if self.mask == "holes":
            mask[0, length // 3] = 0
        return mask.flip(1) if self.mask == "left" else mask


@dataclass
class Twins:
    """`fast`: the model under test; `stock`: its twin, which hfaccel never sees."""

    name: str
    fast: Any
    stock: Any
    precision: str = "float32"  # the coarsest in which values of `fast` were rounded
    undo: dict[str, Any] = field(default_factory=dict)  # what was changed -> a function of a model
    optimizers: list[Any] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)  # models that share weights with `fast`
    patches: ExitStack = field(default_factory=ExitStack)  # what was changed in the process

    @property
    def both(self) -> tuple[Any, Any]:
        return self.fast, self.stock

    @property
    def dtype(self) -> torch.dtype:
        return next(self.stock.parameters()).dtype

    def replace(self, fast: Any, stock: Any) -> None:
        self.fast, self.stock, self.optimizers = fast, stock, []

    def rounded(self, precision: str) -> None:
        self.precision = max(self.precision, precision, key=COARSE.index)

    def tolerance(self, coarser: str = "float32") -> float:
        half = "bfloat16" if self.dtype in (torch.bfloat16, torch.float16) else "float32"
        return TOLERANCE[max(self.precision, half, coarser, key=COARSE.index)]

    def apply(self, change: Any) -> Exception | None:
        """Do something to both; what both have raised."""
        results = [outcome(change, model) for model in self.both]
        _check_raised(*results)
        return results[0] if isinstance(results[0], Exception) else None

    def check(self, inputs: Inputs, call: Any, coarser: str = "float32") -> None:
        """That a call of both gives the same, or raises an exception of the same type."""
        given = inputs.of(self.name)
        got, expected = (outcome(lambda model: dict(tensors(call(model, given))), each) for each in self.both)
        _check_raised(got, expected)
        if not isinstance(expected, Exception):
            check_close(got, expected, given, self.tolerance(coarser))


def outcome(function: Any, model: Any) -> Any:
    """What it returns or raises; random numbers are the same at each call."""
    torch.manual_seed(0)
    np.random.seed(0)  # of SpecAugment
    try:
        return function(model)
    except AssertionError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever stock raises is to be raised)
        return error


def _check_raised(got: Any, expected: Any) -> None:
    if isinstance(got, Exception) and not isinstance(expected, Exception):
        raise AssertionError(f"only the optimized model raises {type(got).__name__}: {got}") from got
    if isinstance(expected, Exception):
        assert type(got) is type(expected), f"stock raises {expected!r}, the optimized model gives {got!r}"


def infer(model: Any, given: dict[str, torch.Tensor], **settings: Any) -> Any:
    with torch.inference_mode():
        return model(**given, **settings)


def tensors(result: Any, place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of numbers in what a model returned, by its place; caches are left out."""
    if isinstance(result, torch.Tensor):
        yield place, result.detach()
    elif hasattr(result, "items"):
        for key, value in result.items():
            if key != "past_key_values":
                yield from tensors(value, f"{place}.{key}")
    elif isinstance(result, list | tuple):
        for key, value in enumerate(result):
            yield from tensors(value, f"{place}.{key}")


def check_close(
    got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], given: Any, tolerance: float
) -> None:
    assert got.keys() == expected.keys()
    for place, wanted in expected.items():
        result = got[place]
        assert result.shape == wanted.shape and result.dtype == wanted.dtype, place
        result, wanted = (shown(each, given) for each in (result, wanted))
        far = distance(result, wanted)
        assert far <= tolerance, f"{place} differs by {far:.2g}, which is more than {tolerance}"


def shown(result: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows, numbers): those of positions that the mask shows. A result without positions is computed from
    the first, as poolers do."""
    mask = given.get("attention_mask")
    if mask is None or "input_ids" not in given:
        return result.flatten(0, -2)
    real = mask.bool()
    if result.dim() == 4:  # attention probabilities
        return result.transpose(1, 2)[real].flatten(0, 1)
    return result[real] if result.shape[:2] == mask.shape else result[real[:, 0]]


def distance(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest distance of two rows, relative to their length or the usual one."""
    if not expected.numel():
        return 0.0
    usual = expected.isfinite()
    if not torch.equal(result.isfinite(), usual):
        return float("inf")
    result, expected = (torch.where(usual, each, 0.0).double() for each in (result, expected))
    lengths = expected.norm(dim=-1)
    lengths = lengths.clamp_min(max(lengths.mean().item(), 1e-6))
    return ((result - expected).norm(dim=-1) / lengths).max().item()

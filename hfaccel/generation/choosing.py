"""The next token of each request, from the logits of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hfaccel.generation.settings import Settings


class Choice(NamedTuple):
    token: int
    logprob: float | None = None  # of the model's own distribution


class Chooser:
    """Of one request: transformers' processors, in the order of `generate`, and its own random numbers."""

    def __init__(self, settings: Settings, prompt: int) -> None:
        self.settings = settings
        self._processors = LogitsProcessorList(_processors(settings, prompt))
        self._generator = torch.Generator()
        if settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(settings.seed)

    @property
    def takes_likeliest(self) -> bool:
        return not (self.settings.do_sample or self._processors)

    def choose(self, ids: Sequence[int], logits: torch.Tensor) -> int:
        """`logits`: (vocabulary)."""
        scores = self._processors(torch.tensor([ids]), logits[None].to(torch.float32, copy=True))
        if not self.settings.do_sample:
            return int(scores.argmax(-1))
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))


def _processors(settings: Settings, prompt: int) -> Iterator[object]:
    if settings.repetition_penalty != 1:
        yield RepetitionPenaltyLogitsProcessor(penalty=float(settings.repetition_penalty))
    if settings.min_new_tokens and settings.eos:
        yield MinNewTokensLengthLogitsProcessor(prompt, settings.min_new_tokens, sorted(settings.eos))
    if not settings.do_sample:
        return
    if settings.temperature != 1:
        yield TemperatureLogitsWarper(float(settings.temperature))
    if settings.top_k:
        yield TopKLogitsWarper(top_k=settings.top_k)
    if settings.top_p < 1:
        yield TopPLogitsWarper(top_p=float(settings.top_p))
    if settings.min_p > 0:
        yield MinPLogitsWarper(min_p=float(settings.min_p))


def choose_all(
    choosers: Sequence[Chooser], ids: Sequence[Sequence[int]], logits: torch.Tensor
) -> list[Choice | Exception]:
    """`logits`: (requests, vocabulary). A request whose settings fail gets the error alone."""
    likeliest = _likeliest(logits).tolist()  # once for all; those that sample are few, or slower anyway
    return [
        _choice(chooser, known, row, first)
        for chooser, known, row, first in zip(choosers, ids, logits, likeliest, strict=True)
    ]


BLOCK = 64  # numbers


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """argmax(-1): the block first, for torch finds a maximum by vectors, but its place number by number."""
    rows, vocabulary = logits.shape
    if vocabulary % BLOCK:
        return logits.argmax(-1)
    blocks = logits.view(rows, -1, BLOCK)
    best = blocks.amax(-1).argmax(-1)
    return best * BLOCK + blocks[torch.arange(rows), best].argmax(-1)


def _choice(chooser: Chooser, ids: Sequence[int], logits: torch.Tensor, likeliest: int) -> Choice | Exception:
    try:
        token = likeliest if chooser.takes_likeliest else chooser.choose(ids, logits)
    except Exception as error:  # noqa: BLE001 - raised where the request was made
        return error
    if not chooser.settings.logprobs:
        return Choice(token)
    return Choice(token, float(logits.float().log_softmax(-1)[token]))

"""The likeliest token of each row is argmax's, whatever the vocabulary's size; draws follow a seed."""

from __future__ import annotations

import pytest
import torch

from hfaccel.generation.choosing import Choice, Chooser, choose_all
from hfaccel.generation.settings import Settings


def choosers(count, **settings):
    return [Chooser(Settings(max_new_tokens=5, **settings), prompt=2) for _ in range(count)]


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 211, 640])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy(vocabulary, dtype):
    """In bfloat16 several tokens are the likeliest: the first of them counts."""
    logits = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[1] = 1.0
    logits[2, -1] = logits[2].max()
    got = choose_all(choosers(5), [[3, 4]] * 5, logits)
    first = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert got == [Choice(token) for token in first]


def test_logprobs_are_the_models_own():
    """Whatever the settings make of the distribution."""
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    made = choosers(2, logprobs=True, do_sample=True, temperature=0.2, top_k=3, seed=1)
    for choice, row in zip(choose_all(made, [[3], [3]], logits), logits, strict=True):
        assert choice.logprob == pytest.approx(float(row.log_softmax(-1)[choice.token]))


def test_the_logits_of_others_are_left_alone():
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    choose_all(choosers(3, repetition_penalty=3.0, do_sample=True, top_p=0.5), [[3, 4]] * 3, logits)
    assert torch.equal(logits, before)


def test_an_error_is_one_requests_own():
    """No token can be drawn from numbers that are none."""
    logits = torch.zeros(2, 30)
    logits[0] = float("nan")
    bad, good = choose_all(choosers(2, do_sample=True), [[3], [3]], logits)
    assert isinstance(bad, RuntimeError)
    assert isinstance(good, Choice)

"""Every architecture: the tokens of an optimized model are those of transformers."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import needs_kernels
from models import (
    CAUSAL,
    CROSSING,
    DECODERS,
    MARGIN,
    NAMES,
    NEW,
    NO_END,
    VARIED,
    optimized,
    prompt,
    stock,
)
from same import assert_both, assert_equal, assert_same, generate
from transformers import LogitsProcessor

import hfaccel
from hfaccel.engine.layers.call import Call

pytestmark = pytest.mark.usefixtures("one_thread")
DETAILS = dict(return_dict_in_generate=True, output_logits=True, output_scores=True)


class Noise(LogitsProcessor):
    """Moves logits by more than rounding does."""

    def __init__(self, seed, size):
        self.generator, self.size = torch.Generator().manual_seed(seed), size

    def __call__(self, input_ids, scores):
        return scores + self.size * torch.randn(scores.shape, generator=self.generator)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_stand_far_apart(name):
    """Of stock models: so no other test here depends on rounding, or sees one token again and again."""
    greedy = generate(stock(name), name, eos_token_id=NO_END, **DETAILS)
    logits = torch.stack(greedy.logits)
    first, second = logits.topk(2).values.unbind(-1)
    margin = MARGIN * min(1, logits.std().item())
    assert (first - second).min() > margin
    assert sum(len(set(row.tolist())) for row in greedy.sequences[:, -NEW:]) >= VARIED
    beams = [
        generate(stock(name), name, num_beams=4, logits_processor=[Noise(seed, margin / 4)] if seed else None)
        for seed in range(4)
    ]
    assert all(each.equal(beams[0]) for each in beams)


@needs_kernels
@pytest.mark.parametrize("name", NAMES)
def test_something_is_optimized(name):
    report = hfaccel.report(optimized(name))
    assert any(outcome.applied for outcome in report.outcomes)


@needs_kernels
@pytest.mark.parametrize("name", CROSSING)
def test_decoder_layers_run_in_the_kernels(name, monkeypatch):
    """Both in one call for each step, except UMT5's, which have a bias each."""
    model, steps = optimized(name), []
    before = dict(hfaccel.report(model).stock_calls)
    call_kernels = Call.call_kernels

    def note(call, layers, *args):
        if call.follows:
            steps.append((len(layers), len(args)))
        call_kernels(call, layers, *args)

    monkeypatch.setattr(Call, "call_kernels", note)
    generate(model, name, num_beams=2, max_new_tokens=3, eos_token_id=NO_END)
    assert dict(hfaccel.report(model).stock_calls) == before
    assert {layers for layers, _ in steps} == {1 if name == "UMT5" else 2}
    assert {given for _, given in steps} == {6}  # rows, output, past, its caches, the encoder's, their caches
    assert len(steps) == (6 if name == "UMT5" else 3)


@pytest.mark.parametrize("name", NAMES)
def test_greedy(name):
    """One text without padding; the logits of each step are close, too."""
    assert_same(name, 1, attention_mask=None, eos_token_id=NO_END, **DETAILS)


@pytest.mark.parametrize("name", NAMES)
def test_texts_of_different_lengths(name):
    """Padded, and some of them at their end before the others."""
    free = generate(stock(name), name, eos_token_id=NO_END)
    ends = free[0, -NEW // 2].item()
    assert_same(name, eos_token_id=NO_END, **DETAILS)
    got = assert_same(name, eos_token_id=[ends, 2])
    assert got[0].tolist() != free[0, : got.shape[1]].tolist() or got.shape != free.shape


@pytest.mark.parametrize("name", NAMES)
def test_without_a_cache(name):
    assert_same(name, use_cache=False)


@pytest.mark.parametrize("name", NAMES)
def test_beams(name):
    assert_same(name, num_beams=4)
    assert_same(name, num_beams=3, num_return_sequences=3, eos_token_id=NO_END, **DETAILS)


@pytest.mark.parametrize("name", NAMES)
def test_sampling(name):
    assert_same(name, do_sample=True, top_k=0)
    assert_same(name, do_sample=True, top_p=0.9, temperature=0.7, num_return_sequences=2)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_that_was_given_and_the_restored_one(name):
    given = copy.deepcopy(stock(name))
    fast = hfaccel.optimize(given)
    expected = generate(stock(name), name)
    for model in (fast, given, fast):
        assert_equal(generate(model, name), expected)
    hfaccel.restore(fast)
    for model in (fast, given):
        assert_equal(generate(model, name), expected)


@pytest.mark.parametrize("name", DECODERS)
def test_in_place(name):
    model = copy.deepcopy(stock(name))
    assert hfaccel.optimize(model, inplace=True) is model
    assert_equal(generate(model, name), generate(stock(name), name))


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Mistral, window", "Gemma2"])
def test_many_tokens(name):
    """More than a cache has room for at first, and than a window shows."""
    assert_same(name, max_new_tokens=120, eos_token_id=NO_END)


@pytest.mark.parametrize("name", DECODERS)
def test_one_call_after_another(name):
    """Of different sizes, in an order in which one could find what another has left."""
    for count, new in ((3, 4), (1, 12), (2, 1), (3, 9)):
        assert_same(name, count, max_new_tokens=new)


@pytest.mark.parametrize("name", list(CAUSAL))
def test_one_forward(name):
    """Logits of a whole padded batch, where it has tokens; and the loss."""
    given = prompt(name)
    real = given["attention_mask"].bool()

    def use(model):
        with torch.inference_mode():
            result = model(**given, labels=given["input_ids"].masked_fill(~real, -100))
        return result.logits[real], result.loss

    assert_both(name, use)

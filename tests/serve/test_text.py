"""The embedder against the stock model, each text alone."""

from __future__ import annotations

import asyncio

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForSequenceClassification, pipeline

import hfaccel
from corpus import texts
from hfaccel.errors import ModelError, UsageError

SHORT = ["one", "two and more", "three", "four of them are here", "five"]
TEXTS = ["", *texts(12), "a long one " * 50]


@pytest.fixture(scope="module")
def tokenizer(minilm_path):
    return AutoTokenizer.from_pretrained(minilm_path)


@pytest.fixture(scope="module")
def model(minilm_path):
    return AutoModel.from_pretrained(minilm_path).eval()


def embedded(tokenizer, model, items, **settings):
    async def main():
        async with hfaccel.serve.embedder(tokenizer, model, **settings) as embed:
            return await asyncio.gather(*map(embed, items), return_exceptions=True)

    return asyncio.run(main())


def alone(tokenizer, model, text, pool):
    with torch.inference_mode():
        tokens = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        return pool(model(**tokens).last_hidden_state[0])


@pytest.mark.parametrize(
    ("settings", "pool"),
    [
        ({}, lambda states: states.mean(0) / states.mean(0).norm()),
        ({"pooling": "cls", "normalize": False}, lambda states: states[0]),
    ],
)
def test_each_text_gets_the_embedding_that_it_has_alone(tokenizer, model, settings, pool):
    got = embedded(tokenizer, model, TEXTS, max_length=64, **settings)
    for text, vector in zip(TEXTS, got, strict=True):
        assert vector.shape == (384,) and vector.dtype == torch.float32
        assert (vector - alone(tokenizer, model, text, pool)).abs().max() < 1e-5


def test_an_optimized_model_gives_the_same(tokenizer, minilm_path, model):
    fast = hfaccel.optimize(AutoModel.from_pretrained(minilm_path).eval())
    got, expected = (embedded(tokenizer, either, TEXTS, max_length=64) for either in (fast, model))
    assert (torch.stack(got) - torch.stack(expected)).abs().max() < 1e-5


def test_a_bad_text_fails_alone(tokenizer, model):
    good, number, several, also_good = embedded(tokenizer, model, ["good", 5, ["two", "texts"], "also good"])
    assert good.shape == also_good.shape == (384,)
    assert isinstance(number, UsageError) and "one text is expected, but got int" in str(number)
    assert isinstance(several, UsageError) and "got list; call it for each text" in str(several)


def test_poolings_have_names(tokenizer, model):
    with pytest.raises(UsageError, match="must be one of mean, cls, but got 'max'"):
        hfaccel.serve.embedder(tokenizer, model, pooling="max")


def test_texts_are_padded_on_the_right(minilm_path, tokenizer, model):
    left = AutoTokenizer.from_pretrained(minilm_path, padding_side="left")
    got, expected = (embedded(either, model, SHORT, pooling="cls") for either in (left, tokenizer))
    assert (torch.stack(got) - torch.stack(expected)).abs().max() < 1e-5


def test_a_tokenizer_must_be_able_to_pad(minilm_path, model):
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    tokenizer.pad_token = None
    with pytest.raises(UsageError, match=r"tokenizer\.pad_token.*is None; set it"):
        hfaccel.serve.embedder(tokenizer, model)


@pytest.mark.parametrize("thing", [None, "name", 3, torch.nn.Linear])
def test_a_tokenizer_and_a_model_are_told_from_other_things(tokenizer, model, thing):
    with pytest.raises(UsageError, match="a tokenizer of transformers is expected, but got"):
        hfaccel.serve.embedder(thing, model)
    with pytest.raises(UsageError, match="`max_length >= 1` must hold, but got 0"):
        hfaccel.serve.embedder(tokenizer, model, max_length=0)


def test_a_pipeline_is_no_encoder(tokenizer, model):
    pipe = pipeline("feature-extraction", model, tokenizer=tokenizer, device="cpu")
    for thing in (None, "name", pipe):
        with pytest.raises(ModelError, match="an encoder is expected, but got"):
            hfaccel.serve.embedder(tokenizer, thing)


def test_limits_are_those_of_the_batcher(tokenizer, model):
    with pytest.raises(UsageError, match="max_batch >= 1"):
        hfaccel.serve.embedder(tokenizer, model, max_batch=0)


def test_a_pipeline_is_served_by_a_batcher(tokenizer):
    """What the docs show for any pipeline."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes)).eval()
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer)

    def classify(items):
        return pipe(items, batch_size=len(items))

    async def main():
        async with hfaccel.serve.Batcher(classify) as batcher:
            return await asyncio.gather(*map(batcher, SHORT))

    for text, answer in zip(SHORT, asyncio.run(main()), strict=True):
        (expected,) = pipe(text)
        assert answer == {"label": expected["label"], "score": pytest.approx(expected["score"], abs=1e-5)}

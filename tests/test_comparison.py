"""compare(): what it says of equal models, of different ones, and of texts."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from conftest import make_bert, needs_kernels

import hfaccel
from hfaccel.comparison import agreement
from hfaccel.errors import HfaccelError, ModelError, UsageError


def test_equal_models_are_equal(bert, batch):
    result = hfaccel.compare(bert, copy.deepcopy(bert), [batch, batch], repeats=1)
    assert result.inputs == 6 and result.largest_difference == 0
    assert result.least_cosine == pytest.approx(1) and math.isnan(result.neighbours)
    assert "too few inputs" in str(result) and "times faster" in str(result) and json.dumps(result.to_dict())


def test_padding_does_not_count(bert, batch):
    result = hfaccel.compare(bert, hfaccel.optimize(bert), [batch], repeats=1)
    assert result.largest_difference < 1e-5


@needs_kernels
def test_precision_shows(bert, batch):
    int8 = hfaccel.compare(bert, hfaccel.optimize(bert, quantization="int8"), [batch], repeats=1)
    assert int8.largest_difference > 1e-4 and 0.99 < int8.least_cosine < 0.999999


def test_texts_are_tokenized(minilm_path):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(minilm_path)
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    texts = [f"number {number} of a list of short texts" for number in range(14)]
    result = hfaccel.compare(model, hfaccel.optimize(model), texts, tokenizer=tokenizer, repeats=1)
    assert result.inputs == 14 and result.neighbours > 0.95


def test_agreement_of_neighbours():
    vectors = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    assert agreement(vectors, vectors * 3) == 1
    assert agreement(vectors, torch.randn(40, 16, generator=torch.Generator().manual_seed(1))) < 0.6


def test_pipelines_bring_their_tokenizer(minilm_path):
    from transformers import pipeline

    pipe = pipeline("feature-extraction", minilm_path, device="cpu")
    assert hfaccel.compare(pipe, hfaccel.optimize(pipe), ["a text", "b"], repeats=1).largest_difference < 1e-5


def test_outputs_as_long_as_their_batch_are_compared_without_padding(batch):
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(0)
    sizes = dict(hidden_size=256, num_hidden_layers=1, num_attention_heads=4, intermediate_size=512)
    model = BertForQuestionAnswering(BertConfig(vocab_size=1000, **sizes)).eval()
    shorter = {name: tensor[:2, :11] for name, tensor in batch.items()}
    result = hfaccel.compare(model, hfaccel.optimize(model), [batch, shorter], repeats=1)
    assert result.inputs == 5 and result.largest_difference < 1e-5


@pytest.mark.parametrize(
    ("inputs", "settings", "text"),
    [
        ([], {}, "at least one input"),
        (["a text"], {}, "needs `tokenizer`"),
        (["a text"], {"tokenizer": 3}, "needs `tokenizer`.*but got 3"),
        ("a text", {}, "a list of texts or batches, but got one str"),
        ({"input_ids": torch.ones(1, 2)}, {}, "but got one dict"),
        (3, {}, "but got one int"),
        (["a text", {"input_ids": torch.ones(1, 2)}], {}, "either texts or batches.*dict, str"),
        ([1, 2], {}, "either texts or batches.*int"),
        (["a text"], {"tokenizer": len, "batch_size": 0}, "`batch_size >= 1` must hold, but got 0"),
        (["a text"], {"tokenizer": str.split, "repeats": 0}, "`repeats >= 1` must hold, but got 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(bert, inputs, settings, text):
    with pytest.raises(UsageError, match=text):
        hfaccel.compare(bert, bert, inputs, **settings)


def test_what_is_no_model_or_another_model_is_refused(bert, batch):
    with pytest.raises(ModelError, match="Module or a transformers pipeline is expected, but got str"):
        hfaccel.compare("bert", bert, [batch])
    other = make_bert(hidden_size=128)
    with pytest.raises(HfaccelError, match=r"one shape, but got \(3, 256\) and \(3, 128\)"):
        hfaccel.compare(bert, other, [batch])

"""compare(): what it says of equal models, of different ones, and of texts."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

import hfaccel
from hfaccel.comparison import agreement
from hfaccel.errors import UsageError


def test_equal_models_are_equal(bert, batch):
    result = hfaccel.compare(bert, copy.deepcopy(bert), [batch, batch], repeats=1)
    assert result.inputs == 6 and result.largest_difference == 0
    assert result.least_cosine == pytest.approx(1) and math.isnan(result.neighbours)
    assert "times faster" in str(result) and json.dumps(result.to_dict())


def test_padding_does_not_count(bert, batch):
    result = hfaccel.compare(bert, hfaccel.optimize(bert), [batch], repeats=1)
    assert result.largest_difference < 1e-5


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


@pytest.mark.parametrize(("inputs", "text"), [([], "at least one input"), (["a text"], "needs `tokenizer`")])
def test_what_cannot_be_compared_is_refused(bert, inputs, text):
    with pytest.raises(UsageError, match=text):
        hfaccel.compare(bert, bert, inputs)

"""Real weights and real texts: results of every way to call equal transformers', text by text."""

from __future__ import annotations

import pytest
import torch
from tiny import one_thread  # noqa: F401 - a fixture
from transformers import pipeline

import hfaccel
from corpus import texts

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {"tokenize_kwargs": {"truncation": True, "max_length": 48}}


@pytest.fixture(scope="module")
def given():
    return ["", *texts(14), "word " * 20_000]


@pytest.fixture(scope="module")
def stock(minilm_path):
    return pipeline("feature-extraction", model=minilm_path, device="cpu")


@pytest.fixture(scope="module")
def expected(stock, given):
    return stock(given, return_tensors=True, **SETTINGS)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_features_are_those_of_each_text_alone(minilm_path, given, expected, batch_size):
    fast = hfaccel.pipeline("feature-extraction", minilm_path, batch_size=batch_size, **SETTINGS)
    for ways in (fast(given), list(fast(text for text in given)), fast(given, return_tensors=True)):
        assert len(ways) == len(given)
        for got, one in zip(ways, expected, strict=True):
            torch.testing.assert_close(torch.as_tensor(got), one, rtol=0, atol=1e-5)


def test_transformers_batches_hold_the_same_behind_their_padding(stock, given, expected):
    """What differs from `batch_size=32` there is the padding alone; docs/pipelines.md says so."""
    padded = stock(given, batch_size=32, return_tensors=True, **SETTINGS)
    for got, one in zip(padded, expected, strict=True):
        assert got.shape[1] >= one.shape[1]
        torch.testing.assert_close(got[:, : one.shape[1]], one, rtol=0, atol=1e-5)

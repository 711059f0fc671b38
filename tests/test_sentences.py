"""sentence-transformers: `hfaccel.optimize(SentenceTransformer(...))`, as its users make it and call it."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import needs_kernels

import hfaccel
from corpus import texts

sentences = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["", "one", *texts(10)]


@pytest.fixture(scope="module")
def stock(minilm_path):
    model = sentences.SentenceTransformer(minilm_path, device="cpu")
    model.max_seq_length = 64
    return model


@pytest.fixture(scope="module")
def fast(stock):
    return hfaccel.optimize(stock)


def assert_close(got, expected):
    if isinstance(expected, list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other)
        return
    assert type(got) is type(expected)
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected), rtol=0, atol=1e-5)


@needs_kernels
def test_it_is_optimized_before_its_first_call(minilm_path):
    made = hfaccel.optimize(sentences.SentenceTransformer(minilm_path, device="cpu"))
    assert isinstance(made, sentences.SentenceTransformer)
    assert hfaccel.report(made).backend == "torch"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"convert_to_tensor": True, "normalize_embeddings": True},
        {"convert_to_numpy": False, "batch_size": 3},
        {"output_value": "token_embeddings", "batch_size": 4},
        {"prompt": "query: ", "truncate_dim": 100},
    ],
)
def test_embeddings_are_equal(stock, fast, settings):
    assert_close(fast.encode(TEXTS, **settings), stock.encode(TEXTS, **settings))
    assert not hfaccel.report(fast).stock_calls


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_give_equal_embeddings(stock, fast, way):
    assert_close(way(fast).encode(TEXTS), stock.encode(TEXTS))


def test_lower_precision_is_close(stock):
    got = hfaccel.optimize(stock, dtype=torch.bfloat16).encode(TEXTS)
    assert np.min(np.sum(got * stock.encode(TEXTS), axis=1)) > 0.999


def test_saving_saves_what_it_was(stock, fast, tmp_path):
    fast.save(str(tmp_path))
    assert_close(
        sentences.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS), stock.encode(TEXTS)
    )


def test_queries_that_are_filled_up_are_scored_as_in_stock(minilm_path):
    """ColBERT's: [MASK] tokens under the mask have vectors that count."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Transformer

    expansion = {"strategy": "fixed", "attend": False, "length": 32}
    modules = [Transformer(minilm_path, query_expansion=expansion), MultiVectorMask()]
    stock = MultiVectorEncoder(modules=modules, device="cpu").eval()
    fast = hfaccel.optimize(copy.deepcopy(stock))
    for texts_of, encode in ((["what does a fox eat", "oil"], "encode_query"), (TEXTS, "encode_document")):
        expected, got = (getattr(model, encode)(texts_of) for model in (stock, fast))
        assert_close(list(got), list(expected))

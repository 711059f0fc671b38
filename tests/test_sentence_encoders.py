"""sentence-transformers' other encoders: pairs (CrossEncoder), sparse vectors (SPLADE) and one vector for
each token (ColBERT), optimized as a whole and called as their users call them."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import needs_kernels

import hfaccel
from corpus import texts
from hfaccel.engine.models.shortcut import Shortcut

sentences = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
QUERIES = ["what does a red fox eat", "oil", "how are arguments of a function parsed"]
TEXTS = ["", "one", *texts(8)]
PAIRS = [(query, text) for query in QUERIES for text in TEXTS]
# Distance from stock float32, relative to the length of the result, as tests/conformance has it.
TOLERANCE = {"bfloat16": 0.045, "int8": 0.14}  # cosines of 0.999 and 0.99
PRECISIONS = {"float32": {}, "bfloat16": {"dtype": torch.bfloat16}, "int8": {"quantization": "int8"}}
EACH = pytest.mark.parametrize("precision", PRECISIONS)


def seeded(make):
    """MiniLM has no head for pairs or words: it gets one of random weights, the same at every run."""
    torch.manual_seed(0)
    model = make()
    model.max_seq_length = 64
    return model.eval()


@pytest.fixture(scope="module")
def pairs(minilm_path):
    model = seeded(lambda: sentences.CrossEncoder(minilm_path, device="cpu", num_labels=1, max_length=64))
    with torch.no_grad():
        model.model.classifier.weight.mul_(20)  # scores that differ
    return model


@pytest.fixture(scope="module")
def splade(minilm_path):
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    return seeded(
        lambda: sentences.SparseEncoder(
            modules=[MLMTransformer(minilm_path), SpladePooling(pooling_strategy="max")], device="cpu"
        )
    )


@pytest.fixture(scope="module")
def colbert(minilm_path):
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

    tokens = dict(module_input_name="token_embeddings", module_output_name="token_embeddings")

    def make():
        expansion = {"strategy": "fixed", "attend": False, "length": 24}
        transformer = Transformer(minilm_path, query_expansion=expansion)
        dense = Dense(384, 128, bias=False, activation_function=torch.nn.Identity(), **tokens)
        words = MultiVectorMask(skiplist_words=[".", ","])
        return sentences.MultiVectorEncoder(
            modules=[transformer, dense, words, Normalize(**tokens)], device="cpu"
        )

    return seeded(make)


def fused(model):
    """The fused layers and stacks of the report, and that no call left them."""
    report = hfaccel.report(model)
    assert report.backend == "torch" and report.stock_calls == {}
    return {one.subject: one.count for one in report.outcomes if one.applied}


def close(got, expected, precision):
    assert type(got) is type(expected)
    got, expected = (torch.as_tensor(each) for each in (got, expected))
    got, expected = (each.to_dense() if each.is_sparse else each for each in (got, expected))
    if precision == "float32":
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert got.shape == expected.shape
    assert (got - expected).norm() <= TOLERANCE.get(precision, 1e-5) * expected.norm()


@needs_kernels
@EACH
def test_pairs_get_equal_scores(pairs, precision):
    fast = hfaccel.optimize(pairs, **PRECISIONS[precision])
    assert type(fast) is type(pairs)
    for settings in ({}, {"batch_size": 4}, {"convert_to_tensor": True, "batch_size": 1}):
        expected = pairs.predict(PAIRS, **settings)
        close(fast.predict(PAIRS, **settings), expected, precision)
    assert expected.std() > 0.01
    assert fused(fast)["BERT layer"] == 6


@needs_kernels
def test_pairs_are_ranked_alike(pairs):
    fast = hfaccel.optimize(pairs)
    for query in QUERIES:
        expected, got = (model.rank(query, TEXTS, return_documents=True) for model in (pairs, fast))
        close([row["score"] for row in got], [row["score"] for row in expected], "float32")
        assert [row["text"] for row in got] == [row["text"] for row in expected]


@needs_kernels
@EACH
@pytest.mark.parametrize("way", ["encode", "encode_query", "encode_document"])
def test_sparse_vectors_are_equal(splade, precision, way):
    fast = hfaccel.optimize(splade, **PRECISIONS[precision])
    for settings in ({"batch_size": 4}, {"convert_to_sparse_tensor": False, "batch_size": 1}):
        expected = getattr(splade, way)(TEXTS, **settings)
        assert expected.to_dense().max() > 0.1
        close(getattr(fast, way)(TEXTS, **settings), expected, precision)
    assert fused(fast)["BERT layer"] == 6


@needs_kernels
@EACH
@pytest.mark.parametrize("way", ["encode", "encode_query", "encode_document"])
def test_vectors_of_tokens_are_equal(colbert, precision, way):
    """Of queries filled up with [MASK] too, which the mask hides and whose vectors count."""
    fast = hfaccel.optimize(colbert, **PRECISIONS[precision])
    expected, got = (getattr(model, way)(QUERIES + TEXTS, batch_size=5) for model in (colbert, fast))
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        close(one, other, precision)
    if way == "encode_query":
        assert {len(vectors) for vectors in got[: len(QUERIES)]} == {24}
        assert all(bool(vectors.abs().sum(1).all()) for vectors in map(torch.as_tensor, got))
    assert fused(fast)["BERT layer"] == 6


@needs_kernels
def test_similarities_are_equal(colbert):
    fast = hfaccel.optimize(colbert)
    expected, got = (
        model.similarity(model.encode_query(QUERIES), model.encode_document(TEXTS))
        for model in (colbert, fast)
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)  # sums over 24 tokens


@needs_kernels
@pytest.mark.parametrize("name", ["pairs", "splade", "colbert"])
def test_copies_and_restored_encoders_give_the_same(request, name):
    stock = request.getfixturevalue(name)
    given = PAIRS[:6] if name == "pairs" else TEXTS[:4]
    call = lambda model: model.predict(given) if name == "pairs" else model.encode(given)  # noqa: E731
    expected = call(stock)
    fast = hfaccel.optimize(copy.deepcopy(stock), inplace=True)
    for model in (fast, copy.deepcopy(fast), hfaccel.restore(fast)):
        got = call(model)
        for one, other in zip(got, expected, strict=True):
            close(one, other, "float32")


@needs_kernels
@pytest.mark.parametrize("name", ["pairs", "colbert"])
def test_a_text_alone_takes_the_shortcut(request, monkeypatch, name):
    """sentence-transformers calls model.forward; a head calls the model within, as others do."""
    taken, original = [], Shortcut.__call__

    def watched(self, *args):
        result = original(self, *args)
        taken.append(result is not None)
        return result

    stock = request.getfixturevalue(name)
    fast = hfaccel.optimize(stock)
    monkeypatch.setattr(Shortcut, "__call__", watched)
    if name == "pairs":
        close(fast.predict(PAIRS[:1]), stock.predict(PAIRS[:1]), "float32")
    else:
        close(fast.encode_document(TEXTS[2]), stock.encode_document(TEXTS[2]), "float32")
    assert taken == [True]

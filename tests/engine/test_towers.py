"""Models of texts and images in one: both towers are fused, and features and scores are those of stock."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache

import pytest
import torch
import transformers
from encoders import random_vectors

import hfaccel
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers.layer import FusedLayer

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
WORDS = dict(vocab_size=300, max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=2)
IMAGE = {**LAYERS, "image_size": 32, "patch_size": 8}
TEXT = {**LAYERS, **WORDS, "projection_size": 64}
FAMILIES = {
    "CLIP": {"CLIP layer": 4},
    "MetaClip2": {"CLIP layer": 4},
    "Siglip": {"SigLIP layer": 4},
    "ChineseCLIP": {"BERT layer": 2, "CLIP layer": 2},
    "AltCLIP": {"BERT layer": 2, "CLIP layer": 2},
    "Blip": {"BLIP layer": 2},
}
PRECISIONS = {"float32": {}, "bfloat16": {"dtype": torch.bfloat16}, "int8": {"quantization": "int8"}}
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.045, "int8": 0.14}  # of tests/conformance/agreement.py


@cache
def made(kind):
    torch.manual_seed(0)
    texts = {**TEXT, "project_dim": 64} if kind == "AltCLIP" else TEXT
    settings = dict(text_config=texts, vision_config=IMAGE)
    if kind != "Siglip":
        settings["projection_dim"] = 32
    config = getattr(transformers, f"{kind}Config")(**settings)
    return random_vectors(getattr(transformers, f"{kind}Model")(config))


def texts(side="right", token=1):
    """Three of up to 12 tokens, each with an end; `token` fills them up."""
    ids = torch.randint(5, 299, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = mask[2, 3:] = 0
    if side == "none":
        ids[:, -1] = 2
        return {"input_ids": ids}
    mask = mask.flip(1) if side == "left" else mask
    ids[torch.arange(3), (mask * torch.arange(12)).argmax(1)] = 2
    return {"input_ids": ids.masked_fill(mask == 0, token), "attention_mask": mask}


def images():
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))}


def features(model, given):
    """What text features, image features and the whole give, by name."""
    found = {}
    with torch.inference_mode():
        found["texts"] = model.get_text_features(**given)
        found["images"] = model.get_image_features(**images())
        whole = model(**given, **images())
    for name in ("texts", "images"):
        if not torch.is_tensor(found[name]):
            found[name] = found[name].pooler_output
    fields = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")
    return found | {name: whole[name] for name in fields}


def close(got, expected, precision="float32"):
    for name, value in expected.items():
        assert got[name].shape == value.shape
        far = (got[name] - value).norm() / value.norm()
        assert far <= TOLERANCE[precision], (name, far)


# Its texts are computed by a decoder's layers, which here are told to see later tokens too.
BOTH_WAYS = {"Blip"}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_features_and_scores_are_equal(kind, precision):
    stock = made(kind)
    fast = hfaccel.optimize(copy.deepcopy(stock), **PRECISIONS[precision])
    for given in (texts(), texts("none"), texts(token=2)):
        close(features(fast, given), features(stock, given), precision)
    report = hfaccel.report(fast)
    assert not report.stock_calls or kind in BOTH_WAYS
    fused = Counter()
    for one in report.outcomes:
        fused[one.subject] += one.count * one.applied
    assert FAMILIES[kind].items() <= fused.items()


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("unpad", ["auto", False])
def test_padding_on_the_left(kind, unpad):
    """Of causal towers stock runs: padding before a text sees nothing there."""
    stock = made(kind)
    fast = hfaccel.optimize(copy.deepcopy(stock), unpad=unpad)
    close(features(fast, texts("left")), features(stock, texts("left")))


@pytest.mark.parametrize("side", ["right", "none"])
def test_a_causal_text_is_causal(side):
    """A later token changes nothing before it."""
    fast, given = hfaccel.optimize(copy.deepcopy(made("CLIP").text_model)), texts(side)
    changed = {**given, "input_ids": given["input_ids"].clone()}
    changed["input_ids"][0, 6] = 77
    with torch.inference_mode():
        before, after = (fast(**each).last_hidden_state[0] for each in (given, changed))
    torch.testing.assert_close(after[:6], before[:6], rtol=0, atol=1e-6)
    assert (after[6:] - before[6:]).abs().max() > 1e-3
    assert any(isinstance(each, FusedLayer) for each in fast.modules())
    assert not hfaccel.report(fast).stock_calls


def test_a_pooler_of_the_last_token_gets_it():
    """SigLIP's takes it whether it is padding or not."""
    fast = hfaccel.optimize(copy.deepcopy(made("Siglip")))
    [reason] = [one.reason for one in hfaccel.report(fast).outcomes if one.subject == "SiglipTextModel"]
    assert reason.startswith("padding is computed: its results depend on padding")


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_images_are_told_apart_without_examples(kind):
    """The pipeline for zero-shot classification, on random weights."""
    image = pytest.importorskip("PIL.Image").new("RGB", (40, 40), (200, 30, 30))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "cat", "dog", "."]
    vocabulary = {word: place for place, word in enumerate(words)}
    names = ["input_ids", "attention_mask"]
    tokens = transformers.BertTokenizerFast(vocab=vocabulary, model_input_names=names)
    size = {"height": 32, "width": 32}
    processor = transformers.CLIPImageProcessor(size=size, crop_size=size)
    made_of = dict(tokenizer=tokens, image_processor=processor)
    stock = transformers.pipeline("zero-shot-image-classification", model=made(kind), **made_of)
    fast = hfaccel.optimize(stock)
    labels = ["cat", "dog", "a photo of a dog"]
    expected, got = (pipe(image, candidate_labels=labels) for pipe in (stock, fast))
    assert [row["label"] for row in got] == [row["label"] for row in expected]
    scores = [torch.tensor([row["score"] for row in rows]) for rows in (got, expected)]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-6)
    assert not hfaccel.report(fast).stock_calls

"""Models of documents: words with their places on a page, images of text, mark-up."""

from __future__ import annotations

import copy
import pickle
from functools import cache

import pytest
import torch
import transformers
from encoders import random_vectors

import hfaccel
from hfaccel import engine
from hfaccel.engine.kernels import kernels_problem

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
WORDS = {**LAYERS, "vocab_size": 300, "pad_token_id": 1, "max_position_embeddings": 64}
PAGE = dict(coordinate_size=12, shape_size=8, input_size=32, patch_size=8, max_2d_position_embeddings=64)
BIASED = dict(has_relative_attention_bias=True, has_spatial_attention_bias=True)
SETTINGS = {
    "LayoutLM": ("LayoutLM", WORDS),
    "LayoutLMv3": ("LayoutLMv3", {**WORDS, **PAGE, **BIASED}),
    "LayoutLMv3, distances alone": (
        "LayoutLMv3",
        {**WORDS, **PAGE, "has_relative_attention_bias": True, "has_spatial_attention_bias": False},
    ),
    "MarkupLM": ("MarkupLM", WORDS),
    "Splinter": ("Splinter", WORDS),  # as MarkupLM it has eager attention only
}
PRECISIONS = {"float32": {}, "bfloat16": {"dtype": torch.bfloat16}, "int8": {"quantization": "int8"}}
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.045, "int8": 0.14}  # of tests/conformance/agreement.py


@cache
def made(name, head="Model"):
    torch.manual_seed(0)
    kind, sizes = SETTINGS[name]
    model = random_vectors(
        getattr(transformers, f"{kind}{head}")(getattr(transformers, f"{kind}Config")(**sizes))
    )
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "rel_" in path:
                weight.mul_(50)  # or places would hardly count
    return model


def page(name, side="right", batch=3, image=False):
    """Words, their places and perhaps an image."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 299, (batch, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:2, 7:] = mask[2:, 3:] = 0
    mask = mask.flip(1) if side == "left" else mask
    given = {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}
    if side == "none":
        given = {"input_ids": ids}
    if name.startswith("LayoutLM"):
        given["bbox"] = torch.randint(0, 60, (batch, 12, 4), generator=generator).sort(-1).values
    if image:
        given["pixel_values"] = torch.randn(batch, 3, 32, 32, generator=generator)
    return given


def agree(fast, stock, given, precision="float32"):
    with torch.inference_mode():
        expected, got = (model(**given) for model in (stock, fast))
    for name, value in expected.items():
        other = got[name]
        if value.dim() == 3 and "attention_mask" in given:
            shown = torch.ones(value.shape[:2], dtype=torch.bool)
            shown[:, : given["attention_mask"].shape[1]] = given["attention_mask"].bool()
            value, other = value[shown], other[shown]
        assert (other - value).norm() <= TOLERANCE[precision] * value.norm(), name


def fused(model):
    return {one.subject for one in hfaccel.report(model).outcomes if one.applied}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("unpad", ["auto", False])
def test_words_on_a_page(name, precision, unpad):
    stock = made(name)
    fast = hfaccel.optimize(copy.deepcopy(stock), unpad=unpad, **PRECISIONS[precision])
    images = (False, True) if "v3" in name else (False,)
    for side in ("right", "left", "none"):
        for image in images:
            agree(fast, stock, page(name, side, image=image), precision)
    family = {"MarkupLM": "eager BERT", "Splinter": "eager BERT"}.get(name, SETTINGS[name][0])
    assert f"{family} layer" in fused(fast) and not hfaccel.report(fast).stock_calls


@pytest.mark.parametrize("name", ["LayoutLM", "LayoutLMv3", "MarkupLM"])
@pytest.mark.parametrize("head", ["ForTokenClassification", "ForQuestionAnswering"])
def test_heads(name, head):
    stock = made(name, head)
    fast = hfaccel.optimize(copy.deepcopy(stock))
    for side in ("right", "left"):
        agree(fast, stock, page(name, side))
    assert not hfaccel.report(fast).stock_calls


def test_layers_without_a_mask_are_causal_in_stock():
    """LayoutLM's attention does not say that it is not: transformers then takes a call without a mask for
    causal. The model always passes one; whoever calls a layer alone gets what stock gives."""
    stock = made("LayoutLM").encoder.layer[0]
    fast = copy.deepcopy(stock)
    engine.transform(fast)
    hidden = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(fast(hidden), stock(hidden), rtol=1e-4, atol=1e-5)
    assert list(engine.stock_calls(fast)) == ["no attention mask was passed"]


@pytest.mark.parametrize("name", ["LayoutLMv3", "MarkupLM"])
@pytest.mark.parametrize("way", ["argument", "config"])
def test_attentions_that_are_asked_for_are_given(name, way):
    stock = made(name)
    fast, given = hfaccel.optimize(copy.deepcopy(stock)), page(name, "none")
    stock = copy.deepcopy(stock)
    if way == "config":
        stock.config.output_attentions = fast.config.output_attentions = True
    with torch.inference_mode():
        asked = {"output_attentions": True} if way == "argument" else {}
        expected, got = (model(**given, **asked).attentions for model in (stock, fast))
    assert len(got) == len(expected) == 2
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    fast.config.output_attentions = stock.config.output_attentions = False
    agree(fast, stock, page(name))


def test_eager_attention_that_was_chosen_is_fused_as_well():
    torch.manual_seed(0)
    stock = random_vectors(transformers.BertModel(transformers.BertConfig(**WORDS)))
    stock.set_attn_implementation("eager")
    fast = hfaccel.optimize(copy.deepcopy(stock))
    agree(fast, stock, page("BERT"))
    assert "eager BERT layer" in fused(fast) and not hfaccel.report(fast).stock_calls
    for model in (stock, fast):
        model.set_attn_implementation("sdpa")
    agree(fast, stock, page("BERT"))
    assert list(hfaccel.report(fast).stock_calls) == ["the attention implementation is sdpa"]


@pytest.mark.parametrize("name", ["LayoutLM", "LayoutLMv3", "MarkupLM"])
def test_copies_pickles_and_restored_models(name):
    stock = made(name)
    fast = hfaccel.optimize(copy.deepcopy(stock))
    for each in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), fast, hfaccel.restore(fast)):
        agree(each, stock, page(name))
    assert type(fast) is type(stock)


# Images of text: an encoder of images and a decoder of words

DECODER = dict(vocab_size=300, d_model=64, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=128)
DECODER |= dict(max_position_embeddings=32, pad_token_id=1, bos_token_id=0, eos_token_id=2)
VISION = {**LAYERS, "image_size": 32, "patch_size": 8}
SWIN = dict(image_size=64, patch_size=4, embed_dim=64, depths=[2, 2], num_heads=[2, 4], window_size=4)


@cache
def reader(kind):
    torch.manual_seed(0)
    sizes = SWIN if kind == "DonutSwin" else {**VISION, "qkv_bias": False} if kind == "ViT" else VISION
    encoder = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))
    if kind == "DonutSwin":
        config = transformers.MBartConfig(
            **{**DECODER, "d_model": 128}, is_decoder=True, add_cross_attention=True
        )
        decoder = transformers.MBartForCausalLM(config)
    else:
        decoder = transformers.TrOCRForCausalLM(
            transformers.TrOCRConfig(**DECODER, cross_attention_hidden_size=64)
        )
    model = transformers.VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.generation_config.update(decoder_start_token_id=2, pad_token_id=1, eos_token_id=2)
    return random_vectors(model)


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "DonutSwin"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_images_of_text(kind, precision):
    """TrOCR's two kinds and Donut. Of Swin the linear layers are packed."""
    stock = reader(kind)
    fast = hfaccel.optimize(copy.deepcopy(stock), **PRECISIONS[precision])
    size = 64 if kind == "DonutSwin" else 32
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, size, size, generator=generator)
    ids = torch.randint(5, 299, (2, 9), generator=generator)
    with torch.inference_mode():
        expected, got = (model(pixel_values=pixels, decoder_input_ids=ids) for model in (stock, fast))
    for name in ("logits", "encoder_last_hidden_state"):
        far = (got[name] - expected[name]).norm() / expected[name].norm()
        assert far <= TOLERANCE[precision], (name, far)
    if precision == "float32":
        assert torch.equal(*(model.generate(pixels, max_new_tokens=8) for model in (stock, fast)))
    assert not hfaccel.report(fast).stock_calls
    assert ("linear layer" if kind == "DonutSwin" else "ViT layer") in fused(fast)

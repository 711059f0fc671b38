"""Decoders of EncoderDecoderModel and its kin for images, the same decoders alone, and models with such
decoders behind images and sounds: their layers run in the kernels and give the tokens of their own code."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import hfaccel
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers.call import Call

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

NEW, MARGIN = 8, 1e-3
SEEDS = {"BERT": 1}  # with which tokens stand further apart than MARGIN; others have 0
IDS = dict(vocab_size=200, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
WIDE = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
BERT = IDS | WIDE | dict(max_position_embeddings=64)
DECODER = dict(is_decoder=True)
CROSSING = DECODER | dict(add_cross_attention=True)
GPT = IDS | dict(n_embd=96, n_layer=2, n_head=4, n_positions=64)
BART = dict(d_model=64, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=128)
TROCR = IDS | BART | dict(max_position_embeddings=64)
SINES = dict(use_learned_position_embeddings=False, layernorm_embedding=False, activation_function="relu")
IMAGE = WIDE | dict(image_size=32, patch_size=8)
WIDER = IMAGE | dict(hidden_size=96)  # than the decoder: TrOCR's projections take it as it is
BLIP_TEXT = BERT | dict(encoder_hidden_size=64, sep_token_id=2)
FROM_ENCODER = "crossattention.output.dense", "crossattention.c_proj", "encoder_attn.out_proj"

NOISE = torch.Generator().manual_seed(1)
TEXTS = torch.randint(3, 200, (3, 9), generator=NOISE)
SHOWN = torch.ones_like(TEXTS)
SHOWN[1, 5:] = 0
IMAGES = dict(pixel_values=torch.randn(3, 3, 32, 32, generator=NOISE))
PADDED = dict(input_ids=TEXTS * SHOWN, attention_mask=SHOWN)
BEFORE = {name: value.flip(1) for name, value in PADDED.items()}  # padding before the texts
SOUNDS = dict(input_values=torch.randn(3, 6000, generator=NOISE))
PATCHES = torch.randn(3, 9, 2 + 48, generator=NOISE)
PATCHES[..., 0], PATCHES[..., 1] = torch.arange(9) // 3 + 1, torch.arange(9) % 3 + 1  # rows and columns
PATCHED = dict(flattened_patches=PATCHES, attention_mask=torch.ones(3, 9))
PATCHED["attention_mask"][1, 6:] = 0
PROMPTED = IMAGES | dict(input_ids=TEXTS[:, :3])


def images(decoder: Any, seen: dict[str, int] = IMAGE) -> nn.Module:
    image = transformers.ViTConfig(**seen)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(image, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    return transformers.VisionEncoderDecoderModel(config)


def texts(decoder: Any) -> nn.Module:
    text = transformers.BertConfig(**BERT)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(text, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    return transformers.EncoderDecoderModel(config)


def blip(name: str) -> nn.Module:
    shared = dict(projection_dim=64, image_text_hidden_size=64)
    config = transformers.BlipConfig(text_config=BLIP_TEXT, vision_config=IMAGE, **shared)
    return getattr(transformers, name)(config)


def moonshine() -> nn.Module:
    wide = {name: value for name, value in BERT.items() if not name.startswith("num")}
    layers = dict(encoder_num_hidden_layers=2, decoder_num_hidden_layers=2, pad_head_dim_to_multiple_of=8)
    heads = dict(encoder_num_attention_heads=8, decoder_num_attention_heads=8, decoder_start_token_id=1)
    config = transformers.MoonshineConfig(**wide | dict(hidden_size=96) | layers | heads)
    return transformers.MoonshineForConditionalGeneration(config)


def pix2struct() -> nn.Module:
    shared = dict(hidden_size=64, d_ff=128, d_kv=16)
    text = IDS | shared | dict(num_layers=2, num_heads=4, decoder_start_token_id=1, is_decoder=True)
    image = shared | dict(patch_embed_hidden_size=48, num_hidden_layers=2, num_attention_heads=4, seq_len=9)
    config = transformers.Pix2StructConfig(text_config=text, vision_config=image)
    model = transformers.Pix2StructForConditionalGeneration(config)
    model.generation_config.update(decoder_start_token_id=1, pad_token_id=0, use_cache=True)
    return model


# name -> how it is made, what it is given, and the family of the decoder's layers
Made = tuple[Callable[[], nn.Module], dict[str, torch.Tensor], str]
# fmt: off
MODELS: dict[str, Made] = {
    "ViT and GPT-2": (lambda: images(transformers.GPT2Config(**GPT, **CROSSING)), IMAGES, "GPT-2 decoder"),
    "ViT and RoBERTa": (
        lambda: images(transformers.RobertaConfig(**BERT, **CROSSING)), IMAGES, "BERT decoder with an encoder"
    ),
    "ViT and XLM-RoBERTa-XL": (
        lambda: images(transformers.XLMRobertaXLConfig(**BERT, **CROSSING)), IMAGES,
        "XLM-RoBERTa-XL decoder with an encoder",
    ),
    "ViT and TrOCR": (
        lambda: images(transformers.TrOCRConfig(**TROCR, cross_attention_hidden_size=96), WIDER), IMAGES,
        "TrOCR decoder",
    ),
    "ViT and TrOCR with sines": (
        lambda: images(transformers.TrOCRConfig(**TROCR, **SINES)), IMAGES, "TrOCR decoder"
    ),
    "BERT and BERT": (
        lambda: texts(transformers.BertConfig(**BERT, **CROSSING)), PADDED, "BERT decoder with an encoder"
    ),
    "BLIP": (lambda: blip("BlipForConditionalGeneration"), PROMPTED, "BLIP decoder"),
    "Moonshine": (moonshine, SOUNDS, "Moonshine decoder"),
    "Pix2Struct": (pix2struct, PATCHED, "Pix2Struct decoder"),
    "BERT": (
        lambda: transformers.BertLMHeadModel(transformers.BertConfig(**BERT, **DECODER)), BEFORE,
        "BERT decoder",
    ),
    "RoBERTa": (
        lambda: transformers.RobertaForCausalLM(transformers.RobertaConfig(**BERT, **DECODER)), BEFORE,
        "BERT decoder",
    ),
    "RoBERTa-PreLayerNorm": (
        lambda: transformers.RobertaPreLayerNormForCausalLM(
            transformers.RobertaPreLayerNormConfig(**BERT, **DECODER)
        ),
        BEFORE, "RoBERTa-PreLayerNorm decoder",
    ),
    "TrOCR": (
        lambda: transformers.TrOCRForCausalLM(transformers.TrOCRConfig(**TROCR)), BEFORE, "TrOCR decoder"
    ),
    "GPT-2 without its encoder": (
        lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT, **CROSSING)), BEFORE,
        "GPT-2 decoder",
    ),
}
# fmt: on


def varied(model: nn.Module) -> Any:
    """With weights that make tokens depend on those before; no bias or norm is 0 or 1."""
    for path, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data += torch.randn_like(parameter) * 0.2
        else:
            weaker = 0.2 if any(name in path for name in FROM_ENCODER) else 1.0
            parameter.data.normal_(std=0.3 * weaker)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.data.normal_()
    return model.eval()


@cache
def stock(name: str) -> Any:
    torch.manual_seed(SEEDS.get(name, 0))
    return varied(MODELS[name][0]())


@cache
def optimized(name: str) -> Any:
    return hfaccel.optimize(copy.deepcopy(stock(name)), backend="torch")


def generated(model: Any, name: str, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    more = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    more |= dict(return_dict_in_generate=True, output_logits=True)
    result = model.generate(**MODELS[name][1], **more, **options)
    return result.sequences, torch.stack(result.logits)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_stock(name):
    model, fast = stock(name), optimized(name)
    reasons = {each.subject: each.reason for each in hfaccel.report(fast).outcomes}
    assert "one function" in reasons[f"{MODELS[name][2]} layer"]
    for options in ({}, {"use_cache": False}, {"num_beams": 3}, {"num_beams": 3, "use_cache": False}):
        (expected, logits), (got, near) = generated(model, name, **options), generated(fast, name, **options)
        assert got.equal(expected), options
        if "num_beams" not in options:
            first, second = logits.topk(2).values.unbind(-1)
            assert (first - second).min() > MARGIN  # so rounding decides nothing
            assert len(set(expected[:, -NEW:].flatten().tolist())) > 3
        torch.testing.assert_close(near, logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max()))
    assert not hfaccel.report(fast).stock_calls


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("RoBERTa", "TrOCR")])
def test_all_layers_run_in_one_call(name, monkeypatch):
    fast, calls = optimized(name), []
    run = Call.run

    def note(self, hidden, layers):
        if self.follows:
            calls.append((hidden.shape[1], len(layers)))
        return run(self, hidden, layers)

    monkeypatch.setattr(Call, "run", note)
    generated(fast, name)
    assert {layers for _, layers in calls} == {2}
    assert [tokens for tokens, _ in calls[1:]] == [1] * (NEW - 1)


def test_blip_reads_texts_from_both_sides_with_its_own_layers():
    """There, BLIP's decoder is no decoder: no token is hidden from those before it."""
    torch.manual_seed(0)
    model = varied(blip("BlipForImageTextRetrieval"))
    fast = hfaccel.optimize(copy.deepcopy(model), backend="torch")
    for texts in (PADDED, {"input_ids": TEXTS[:, :2]}, {"input_ids": TEXTS[:, :1]}):
        for matches in (True, False):
            with torch.inference_mode():
                expected, got = (
                    each(**IMAGES, **texts, use_itm_head=matches).itm_score for each in (model, fast)
                )
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_git_runs_behind_its_prompt():
    """Tokens of an image see each other, which the layers' own forward computes, once for each text."""
    torch.manual_seed(0)
    model = varied(transformers.GitForCausalLM(transformers.GitConfig(**BERT, vision_config=IMAGE)))
    fast = hfaccel.optimize(copy.deepcopy(model), backend="torch")
    for beams in (1, 3):
        more = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, num_beams=beams)
        expected, got = (each.generate(**PROMPTED, **more) for each in (model, fast))
        assert got.equal(expected)
    assert sum(hfaccel.report(fast).stock_calls.values()) == 2 * 2  # layers of two prompts
    with torch.inference_mode():
        expected, got = (each(TEXTS, attention_mask=SHOWN).logits for each in (model, fast))
    real = SHOWN.bool()
    torch.testing.assert_close(got[real], expected[real], rtol=1e-3, atol=1e-3)


def test_attentions_are_those_of_stock():
    for name in ("ViT and TrOCR", "BLIP", "Pix2Struct", "BERT and BERT"):
        given = dict(max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)
        models = copy.deepcopy(stock(name)), hfaccel.optimize(copy.deepcopy(stock(name)), backend="torch")
        for model in models:
            if name == "BERT and BERT":
                model.set_attn_implementation("eager")
        expected, got = (model.generate(**MODELS[name][1], **given) for model in models)
        field = "cross_attentions" if "cross_attentions" in expected else "attentions"
        torch.testing.assert_close(got[field], expected[field], rtol=1e-3, atol=1e-4)


def test_a_hook_on_a_projection_of_the_encoders_states_is_called():
    """GPT-2's gives keys and values."""
    model = hfaccel.optimize(copy.deepcopy(stock("ViT and GPT-2")), backend="torch")
    before, _ = generated(model, "ViT and GPT-2", use_cache=False)
    projection = model.decoder.transformer.h[0].crossattention.c_attn
    hook = projection.register_forward_hook(lambda _, __, rows: rows * -5)
    after, _ = generated(model, "ViT and GPT-2", use_cache=False)
    hook.remove()
    assert not after.equal(before)
    assert hfaccel.report(model).stock_calls


@pytest.mark.parametrize("name", ["ViT and GPT-2", "ViT and TrOCR", "BERT and BERT", "BERT", "BLIP"])
def test_bfloat16_is_close(name):
    fast = hfaccel.optimize(copy.deepcopy(stock(name)), backend="torch", dtype=torch.bfloat16)
    expected, got = (generated(model, name, use_cache=False)[1][0] for model in (stock(name), fast))
    assert nn.functional.cosine_similarity(expected, got.float(), dim=-1).min() > 0.97
    assert not hfaccel.report(fast).stock_calls

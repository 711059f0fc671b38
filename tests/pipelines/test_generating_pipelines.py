"""Pipelines around models with an encoder give what transformers gives: sounds in chunks with times, and
images with texts."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tiny import one_thread  # noqa: F401 - a fixture
from transformers.convert_slow_tokenizer import bytes_to_unicode

import hfaccel

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = "endoftext startoftranscript en translate transcribe startoflm startofprev nospeech notimestamps"
SPECIAL = [f"<|{name}|>" for name in NAMES.split()]
TIMES = [f"<|{number * 0.02:.2f}|>" for number in range(1501)]
LAYERS = dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
SIZES = dict(d_model=64, encoder_ffn_dim=96, decoder_ffn_dim=96, max_source_positions=50, num_mel_bins=20)
WORDS = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
CHUNKS = dict(chunk_length_s=1, stride_length_s=0.2)


def letters() -> Any:
    """Whisper's tokens: bytes, marks and times."""
    from transformers import AddedToken, WhisperTokenizerFast

    end = SPECIAL[0]
    ids = {token: number for number, token in enumerate(bytes_to_unicode().values())}
    ends = dict(unk_token=end, bos_token=end, eos_token=end, pad_token=end)
    made = WhisperTokenizerFast(vocab=ids, merges=[], **ends)
    made.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    made.add_tokens([AddedToken(time, special=False, normalized=False) for time in TIMES])
    return made


@cache
def whisper() -> tuple[Any, Any]:
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        pipeline,
    )

    tokens = letters()
    ids = dict(zip(NAMES.split(), tokens.convert_tokens_to_ids(SPECIAL), strict=True))
    end, start = ids["endoftext"], ids["startoftranscript"]
    marks = dict(pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start)
    more = dict(max_target_positions=64, suppress_tokens=None, begin_suppress_tokens=None, init_std=0.2)
    torch.manual_seed(0)
    config = WhisperConfig(vocab_size=len(tokens), **SIZES, **LAYERS, **marks, **more)
    model = WhisperForConditionalGeneration(config).eval()
    vars(model.generation_config).update(  # its own update() takes what it knows
        no_timestamps_token_id=ids["notimestamps"],
        prev_sot_token_id=ids["startofprev"],
        is_multilingual=True,
        lang_to_id={"<|en|>": ids["en"]},
        task_to_id={"transcribe": ids["transcribe"], "translate": ids["translate"]},
        alignment_heads=[[0, 1], [1, 2]],
        max_initial_timestamp_index=20,
        max_length=64,
    )
    extractor = WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    parts = dict(model=model, tokenizer=tokens, feature_extractor=extractor, device="cpu")
    pipe = pipeline("automatic-speech-recognition", **parts)
    return pipe, hfaccel.optimize(pipe)


@cache
def captions() -> tuple[Any, Any]:
    import transformers

    tokens = tiny.tokenizer()
    ids = dict(bos_token_id=2, pad_token_id=0, eos_token_id=3, sep_token_id=3)
    text = dict(vocab_size=len(tokens), max_position_embeddings=64, encoder_hidden_size=64, **ids, **WORDS)
    image = dict(image_size=32, patch_size=8, **WORDS)
    shared = dict(projection_dim=64, image_text_hidden_size=64)
    torch.manual_seed(0)
    config = transformers.BlipConfig(text_config=text, vision_config=image, **shared)
    model = transformers.BlipForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # as they come, every image would get one text
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    images = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = transformers.BlipProcessor(images, tokens)
    pipe = transformers.pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    return pipe, hfaccel.optimize(pipe)


def sounds(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(length).astype("float32") for length in lengths]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("times", [False, True, "word"], ids=str)
def test_sounds_in_chunks(times, batch_size):
    heard = dict(batch_size=batch_size, return_timestamps=times, **CHUNKS)
    said = dict(max_new_tokens=16, language="en", task="transcribe")
    expected, got = (pipe(sounds(40000, 9000), generate_kwargs=dict(said), **heard) for pipe in whisper())
    tiny.assert_same(got, expected)
    assert not times or all(result["chunks"] for result in expected)


def test_a_long_sound_with_times():
    (sound,), settings = sounds(40000), dict(max_new_tokens=16, language="en")
    expected, got = (
        pipe(sound, return_timestamps=True, generate_kwargs=dict(settings)) for pipe in whisper()
    )
    tiny.assert_same(got, expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_images_with_texts(beams):
    """Of different lengths and of one."""
    for texts in (["the cat", "a", "dog sat on"], ["the", "the", "the"]):
        expected, got = (
            pipe(images=tiny.images(3), text=texts, generate_kwargs=dict(num_beams=beams, max_new_tokens=6))
            for pipe in captions()
        )
        tiny.assert_same(got, expected)
        assert len({result["generated_text"] for result in expected}) > 1

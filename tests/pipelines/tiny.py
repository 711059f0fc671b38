"""A small pipeline of every task, with random weights and a tokenizer made here, and inputs for it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

TEXT = "the a cat dog sat on mat and ran to home quick brown fox jumps over lazy it is this example of"
WORDS = TEXT.split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALL = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    initializer_range=0.4,
)
LABELS = {0: "O", 1: "B-X", 2: "entailment"}


@dataclass(frozen=True)
class Case:
    """`inputs` of very different lengths; `call`: arguments of each call."""

    pipe: Any
    inputs: list[Any]
    call: dict[str, Any] = field(default_factory=dict)


def tokenizer(**settings: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = dict(zip(["pad", "unk", "cls", "sep", "mask"], SPECIAL, strict=True))
    special = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{"model_max_length": 64, **special, **settings},
    )


def texts(count: int, longest: int = 40, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, size=random.integers(1, longest))) for _ in range(count)]


def bert(kind: str, **settings: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        max_position_embeddings=64,
        id2label=LABELS,
        label2id={name: number for number, name in LABELS.items()},
        **{**SMALL, **settings},
    )
    return getattr(transformers, kind)(config).eval()


def text_pipe(task: str, kind: str, **settings: Any) -> Any:
    from transformers import pipeline

    return pipeline(task, model=bert(kind), tokenizer=tokenizer(), device="cpu", **settings)


def text_classification() -> Case:
    pipe = text_pipe("text-classification", "BertForSequenceClassification")
    return Case(pipe, [*texts(20), {"text": "the cat", "text_pair": "a dog"}, ""], {"top_k": None})


def zero_shot_classification() -> Case:
    pipe = text_pipe("zero-shot-classification", "BertForSequenceClassification")
    return Case(pipe, texts(8), {"candidate_labels": ["cat", "dog home", "fox"], "multi_label": True})


def token_classification() -> Case:
    pipe = text_pipe("token-classification", "BertForTokenClassification")
    return Case(pipe, texts(12))


def token_classification_with_stride() -> Case:
    pipe = text_pipe("token-classification", "BertForTokenClassification")
    pipe.tokenizer.model_max_length = 16
    return Case(pipe, texts(8, 60), {"stride": 4, "aggregation_strategy": "simple"})


def fill_mask() -> Case:
    pipe = text_pipe("fill-mask", "BertForMaskedLM")
    return Case(pipe, [f"the [MASK] {text}" for text in texts(12)])


def feature_extraction() -> Case:
    return Case(text_pipe("feature-extraction", "BertModel"), [*texts(20), ""])


def image_classification() -> Case:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil, pipeline

    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, id2label=LABELS, **SMALL)).eval()
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return Case(
        pipeline("image-classification", model=model, image_processor=processor, device="cpu"), images(7)
    )


def image_feature_extraction() -> Case:
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel, pipeline

    torch.manual_seed(0)
    model = ViTModel(ViTConfig(image_size=32, patch_size=8, **SMALL)).eval()
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    pipe = pipeline("image-feature-extraction", model=model, image_processor=processor, device="cpu")
    return Case(pipe, images(7))


def object_detection() -> Case:
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessorPil, pipeline

    torch.manual_seed(0)
    config = YolosConfig(image_size=[32, 32], patch_size=8, num_detection_tokens=5, id2label=LABELS, **SMALL)
    processor = YolosImageProcessorPil(size={"height": 32, "width": 32})
    model = YolosForObjectDetection(config).eval()
    pipe = pipeline("object-detection", model=model, image_processor=processor, device="cpu")
    return Case(pipe, images(7), {"threshold": 0.0})


def speech_recognition() -> Case:
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        pipeline,
    )

    torch.manual_seed(0)
    vocabulary = {
        token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefg"])
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps(vocabulary))
        letters = Wav2Vec2CTCTokenizer(str(path))
    shapes = dict(conv_dim=(16, 16), conv_stride=(8, 4), conv_kernel=(8, 4), num_conv_pos_embedding_groups=4)
    config = Wav2Vec2Config(vocab_size=len(vocabulary), num_conv_pos_embeddings=4, **shapes, **SMALL)
    pipe = pipeline(
        "automatic-speech-recognition",
        model=Wav2Vec2ForCTC(config).eval(),
        tokenizer=letters,
        feature_extractor=Wav2Vec2FeatureExtractor(return_attention_mask=True),
        device="cpu",
    )
    random = np.random.default_rng(0)
    sounds = [random.standard_normal(length).astype("float32") for length in (900, 4000, 1600, 7000, 320)]
    return Case(pipe, sounds)


def audio_classification() -> Case:
    from transformers import Wav2Vec2ForSequenceClassification, pipeline

    case = speech_recognition()
    model = Wav2Vec2ForSequenceClassification(case.pipe.model.config).eval()
    extractor = case.pipe.feature_extractor
    return Case(
        pipeline("audio-classification", model=model, feature_extractor=extractor, device="cpu"), case.inputs
    )


def speech_recognition_in_chunks() -> Case:
    case = speech_recognition()
    return Case(case.pipe, case.inputs, {"chunk_length_s": 0.1, "stride_length_s": 0.02})


def speech_generation() -> Case:
    from transformers import (
        BertConfig,
        SpeechEncoderDecoderConfig,
        SpeechEncoderDecoderModel,
        Wav2Vec2FeatureExtractor,
        pipeline,
    )

    case = speech_recognition()
    torch.manual_seed(0)
    decoder = BertConfig(vocab_size=40, is_decoder=True, add_cross_attention=True, **SMALL)
    config = SpeechEncoderDecoderConfig.from_encoder_decoder_configs(case.pipe.model.config, decoder)
    model = SpeechEncoderDecoderModel(config).eval()
    model.generation_config.update(decoder_start_token_id=2, pad_token_id=0, eos_token_id=3)
    pipe = pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=tokenizer(),
        feature_extractor=Wav2Vec2FeatureExtractor(return_attention_mask=True),
        device="cpu",
    )
    return Case(pipe, case.inputs, {"max_new_tokens": 4, "num_beams": 2})


def text_generation() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel, pipeline

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4, eos_token_id=3)
    model = GPT2LMHeadModel(config).eval()
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer(padding_side="left"), device="cpu")
    return Case(pipe, texts(5, 10), {"max_new_tokens": 4, "do_sample": False})


def images(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = random.integers(20, 60, size=(count, 2))
    return [Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


CASES = {
    make.__name__: make
    for make in (
        text_classification,
        zero_shot_classification,
        token_classification,
        token_classification_with_stride,
        fill_mask,
        feature_extraction,
        image_classification,
        image_feature_extraction,
        audio_classification,
        object_detection,
        speech_recognition,
        speech_recognition_in_chunks,
        speech_generation,
        text_generation,
    )
}


def assert_same(got: Any, expected: Any) -> None:
    """Equal types and structure, numbers equal up to float rounding."""
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        for key, value in expected.items():
            assert_same(got[key], value)
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    elif isinstance(expected, float | np.floating):
        assert abs(got - expected) < 1e-4 or (got != got and expected != expected)
    else:
        assert got == expected


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small models compute faster in one thread, on a busy machine above all."""
    import hfaccel

    hfaccel.configure()  # once in a process: it sets the number of threads
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

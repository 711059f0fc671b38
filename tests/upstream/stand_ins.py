"""Small models with random weights in the place of those that tests load from the hub: so these tests run
where no hub is reached. What depends on trained weights fails with and without hfaccel.

`hub`: a cache like the hub's own, for models that tests name. `tiny`: a folder for
TRANSFORMERS_TINY_MODEL_PATH, from which transformers' pipeline tests take one model of each architecture.
"""

from __future__ import annotations

import itertools
import json
import shutil
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

COMMIT = "0" * 40
FILL = [*string.ascii_lowercase, *string.ascii_uppercase, *string.digits, *".,:;!?'\"()[]{}<>|/-_#&$%*+=@"]
SUMMARY = "reports/tiny_model_summary.json"
SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
WORDPIECE = ("bert", "distilbert", "electra", "mpnet")
BYTES = ("roberta", "deberta", "bart", "gpt2", "longformer")
UNIGRAM = ("albert", "deberta-v2", "t5")
SOUND = ("wav2vec2", "hubert", "whisper")
ENDINGS = (
    *("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"),
    *("ForConditionalGeneration", "LMHeadModel", "ForCausalLM", "ForCTC", "ForAudioClassification"),
)


def make_stand_ins(build: Path) -> dict[str, str]:
    """Make what is missing; the environment variables that point there."""
    hub, tiny = build / "hub", build / "tiny"
    if not (hub / "complete").exists():
        shutil.rmtree(hub, ignore_errors=True)
        _fill_hub(hub)
        (hub / "complete").touch()
    if not (tiny / SUMMARY).exists():
        kinds = (*WORDPIECE, *BYTES, *UNIGRAM, *SOUND)
        summary = dict(itertools.chain.from_iterable(_save_architectures(kind, tiny) for kind in kinds))
        (tiny / SUMMARY).parent.mkdir()
        (tiny / SUMMARY).write_text(json.dumps(summary, indent=1))
    return {"HF_HUB_CACHE": str(hub), "TRANSFORMERS_TINY_MODEL_PATH": str(tiny)}


def _fill_hub(hub: Path) -> None:
    from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    plain = _cached(hub, "distilbert/distilbert-base-uncased")
    _save(plain, "distilbert", "DistilBertForMaskedLM")
    encoder = _cached(hub, "hf-internal-testing/stand-in-bert")
    _save(encoder, "bert", "BertModel")
    text = Transformer(str(encoder))
    parts = [text, Pooling(text.get_embedding_dimension())]
    sentences = _cached(hub, "sentence-transformers-testing/stsb-bert-tiny-safetensors")
    SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(sentences))
    masked = _cached(hub, "hf-internal-testing/stand-in-bert-masked")
    _save(masked, "bert", "BertForMaskedLM")
    splade = _cached(hub, "sparse-encoder-testing/splade-bert-tiny-nq")
    SparseEncoder(str(masked), device="cpu").save_pretrained(str(splade))
    for name in ("reranker-bert-tiny-gooaq-bce", "stsb-distilroberta-base"):
        made = CrossEncoder(str(encoder), num_labels=1, device="cpu")
        made.save_pretrained(str(_cached(hub, f"cross-encoder-testing/{name}")))


def _cached(hub: Path, name: str) -> Path:
    """The folder of a repository's files in the cache."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def _save_architectures(kind: str, tiny: Path) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Saves one model of each; the lines about them in the summary that the pipeline tests read."""
    import transformers

    prefix = transformers.CONFIG_MAPPING[kind].__name__.removesuffix("Config")
    for name in (prefix + ending for ending in ENDINGS):
        if hasattr(transformers, name):
            parts = [type(part).__name__ for part in _save(tiny / kind / name, kind, name)]
            tokenizers = [part for part in parts if "Tokenizer" in part]
            others = sorted({*parts} - {*tokenizers})
            yield name, {"tokenizer_classes": tokenizers, "processor_classes": others}


def _save(folder: Path, kind: str, architecture: str) -> list[Any]:
    import torch
    import transformers
    from small_models import SPECIAL, small_settings

    config_class = transformers.CONFIG_MAPPING[kind]
    settings = small_settings(config_class, 0, SPECIAL.get(kind, {}))
    parts = list(_preprocessors(kind, folder))
    for part in parts:
        part.save_pretrained(folder)
        if hasattr(part, "get_vocab"):
            settings["vocab_size"] = len(part)
            settings |= {name: getattr(part, name) for name in SPECIAL_IDS}
    if config_class.__name__ == "WhisperConfig":
        settings |= {"decoder_start_token_id": settings["bos_token_id"], "max_source_positions": 1500}
    torch.manual_seed(0)
    getattr(transformers, architecture)(config_class(**settings)).save_pretrained(folder)
    return parts


def _preprocessors(kind: str, folder: Path) -> Iterator[Any]:
    """A tokenizer that knows single letters, and what makes features of sounds."""
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    folder.mkdir(parents=True, exist_ok=True)
    if kind in ("wav2vec2", "hubert"):
        yield transformers.Wav2Vec2FeatureExtractor()
        yield _letters(folder)
        return
    if kind == "whisper":
        yield transformers.WhisperFeatureExtractor()
    cls = getattr(transformers, _name(TOKENIZER_MAPPING_NAMES[kind]))
    if kind in WORDPIECE:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "<pad>", "</s>", "<mask>"]
        pieces = [*special, *FILL, *(f"##{each}" for each in FILL)]
        yield cls(vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=64)
    elif kind in UNIGRAM:
        special = ["<pad>", "</s>", "<unk>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "<mask>"]
        pieces = [*special, "▁", *FILL, *(f"▁{each}" for each in FILL)]
        yield cls(vocab=[(piece, -float(number)) for number, piece in enumerate(pieces)], model_max_length=64)
    else:
        yield cls(vocab=_bytes(), merges=[], model_max_length=64)


def _name(found: Any) -> str:
    return found if isinstance(found, str) else next(each for each in reversed(found) if each)


def _bytes() -> dict[str, int]:
    from tokenizers.pre_tokenizers import ByteLevel

    special = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
        "[CLS]",
        "[PAD]",
        "[SEP]",
        "[UNK]",
        "[MASK]",
        "<|endoftext|>",
    ]
    return {piece: number for number, piece in enumerate([*special, *sorted(ByteLevel.alphabet())])}


def _letters(folder: Path) -> Any:
    import transformers

    pieces = ["<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_uppercase]
    file = folder / "vocab.json"
    file.write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    return transformers.Wav2Vec2CTCTokenizer(str(file))

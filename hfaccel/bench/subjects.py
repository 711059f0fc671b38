"""The model of a study: what kind it is, how it is loaded, and models with random weights that need no hub.

Every process builds the same weights and the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, BertConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

from hfaccel.bench.work import Generation
from hfaccel.errors import UsageError

ENCODER, DECODER, OTHER = "encoder", "decoder", "other"
SEED = 0


def _bert(width: int, layers: int, heads: int, **more: int) -> PretrainedConfig:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, **more}
    return BertConfig(intermediate_size=4 * width, architectures=["BertModel"], **sizes)


def _qwen2(width: int, layers: int, heads: int, **more: int) -> PretrainedConfig:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, **more}
    named = {
        "architectures": ["Qwen2ForCausalLM"],
        "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
    }
    return Qwen2Config(num_key_value_heads=2, **sizes, **named)


RANDOM: dict[str, Callable[[], PretrainedConfig]] = {
    "random:bert-base": lambda: _bert(768, 12, 12),
    "random:minilm": lambda: _bert(384, 6, 12),
    "random:qwen2-0.5b": lambda: _qwen2(896, 24, 14, intermediate_size=4864, vocab_size=151936),
}
TINY: dict[str, Callable[[], PretrainedConfig]] = {  # for tests
    "random:tiny": lambda: _bert(64, 1, 4, vocab_size=2000),
    "random:tiny-decoder": lambda: _qwen2(64, 2, 4, intermediate_size=128, vocab_size=2000),
}


def config_of(subject: str) -> PretrainedConfig:
    """Raises UsageError where there is no such model."""
    if make := {**RANDOM, **TINY}.get(subject):
        return make()
    try:
        return AutoConfig.from_pretrained(subject)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"a model must be a folder that save_pretrained wrote, a name of the hub, or one of "
            f"{', '.join(RANDOM)}, but got {subject!r} ({first})"
        ) from None


def class_of(config: PretrainedConfig) -> Any:
    """The class that the checkpoint was saved from; AutoModel where it does not say."""
    name = next(iter(config.architectures or ()), "")
    return getattr(transformers, name, AutoModel)


def kind_of(config: PretrainedConfig) -> str:
    """ENCODER and DECODER are given token ids; decoders generate."""
    chosen = class_of(config)
    if getattr(chosen, "main_input_name", "input_ids") != "input_ids":
        return OTHER
    generates = getattr(chosen, "can_generate", None)
    return DECODER if generates is not None and chosen.can_generate() else ENCODER


def longest_of(config: PretrainedConfig) -> int | None:
    """How many tokens the model can read. RoBERTa counts two positions before the first token."""
    found = getattr(config, "max_position_embeddings", None)
    return found - found % 16 if isinstance(found, int) and found >= 16 else None


def weights_mib(config: PretrainedConfig) -> float:
    """Of the model in float32."""
    chosen = class_of(config)
    with torch.device("meta"):
        model = AutoModel.from_config(config) if chosen is AutoModel else chosen(config)
    return sum(weight.numel() for weight in model.parameters()) * 4 / 2**20  # type: ignore[no-any-return]


def load(subject: str) -> PreTrainedModel:
    """The model in float32 and evaluation mode."""
    config = config_of(subject)
    chosen = class_of(config)
    if subject in {**RANDOM, **TINY}:
        torch.manual_seed(SEED)
        return chosen(config).eval()
    return chosen.from_pretrained(subject, dtype=torch.float32).eval()


def tokens(config: PretrainedConfig, batch: int, length: int) -> torch.Tensor:
    """Random ids, none of those that have a meaning of their own."""
    vocabulary = int(config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(min(1000, vocabulary // 2), vocabulary, (batch, length), generator=generator)


def tokenizer_of(subject: str, texts: Sequence[str]) -> Any:
    """The model's tokenizer. A model with random weights gets one that knows the words of the texts."""
    from transformers import AutoTokenizer

    if subject not in {**RANDOM, **TINY}:
        return AutoTokenizer.from_pretrained(subject)
    return _word_tokenizer(texts, config_of(subject))


def _word_tokenizer(texts: Sequence[str], config: PretrainedConfig) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    splitter = pre_tokenizers.Whitespace()
    words = dict.fromkeys(word for text in texts for word, _ in splitter.pre_tokenize_str(text))
    names = [*special, *words][: config.vocab_size]
    made = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = splitter
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=longest_of(config),
    )


def texts_of(name: str, count: int) -> list[str]:
    """The first texts of a file, one in each line, or of the docstrings."""
    from hfaccel.bench.corpus import texts
    from hfaccel.bench.work import DOCSTRINGS

    if name == DOCSTRINGS:
        return texts(count)
    try:
        with open(name, encoding="utf-8") as file:  # noqa: PTH123
            found = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"a file of texts must be readable UTF-8, but {name!r} is not ({error})") from None
    if len(found) < count:
        raise UsageError(f"`texts <= {len(found)}` must hold for {name!r}, but got {count}")
    return found[:count]


def regret(model: PreTrainedModel, prompt: torch.Tensor, generated: torch.Tensor, work: Generation) -> float:
    """How far generated tokens lie behind the model's own choices, in standard deviations of the logits."""
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            logits = model(input_ids=prompt, decoder_input_ids=generated[:, :-1]).logits
        else:
            logits = model(input_ids=generated[:, :-1]).logits
    logits = logits[:, -work.new_tokens :].float()
    chosen = logits.gather(-1, generated[:, -work.new_tokens :, None])[..., 0]
    return float(((logits.amax(-1) - chosen) / logits.std(-1)).mean())

"""What a generation config asks for, of which the scheduler supports a part."""

from __future__ import annotations

from collections.abc import Mapping

# fmt: off
# Fields that the scheduler supports.
DONE = frozenset((
    "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens",
    "max_new_tokens", "eos_token_id",
))
# Fields that concern beams, assistants, caches or the form of a result, and change no token here.
HARMLESS = frozenset((
    "pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version", "use_cache",
    "max_length", "cache_config", "cache_implementation", "compile_config", "disable_compile",
    "return_dict_in_generate", "is_assistant", "length_penalty", "early_stopping", "renormalize_logits",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "target_lookbehind",
    "assistant_confidence_threshold", "assistant_lookbehind", "assistant_early_exit",
    "max_matching_ngram_size",
))
# fmt: on
# Values that ask for nothing, beside None, False and 0.
NOTHING: Mapping[str, object] = {
    "typical_p": 1.0,
    "encoder_repetition_penalty": 1.0,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
}


def unknown(config: Mapping[str, object]) -> list[str]:
    """Fields that ask for what the scheduler does not support."""
    return [name for name, value in config.items() if not (_is_known(name) or _asks_nothing(name, value))]


def _is_known(name: str) -> bool:
    return name in DONE or name in HARMLESS or name.startswith("_")


def _asks_nothing(name: str, value: object) -> bool:
    return not value or value == NOTHING.get(name)

"""Prompts of a Generator: tokens, a text or a chat; and its tokenizer, which several threads use."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from hfaccel.errors import UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = "str | Sequence[int] | Sequence[Message] | torch.Tensor"


class Shared:
    """A tokenizer for several threads: one at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._lock = tokenizer, threading.Lock()

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        with self._lock:
            text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def encode(self, text: str) -> list[int]:
        with self._lock:
            ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        with self._lock:
            try:
                made = self._tokenizer.apply_chat_template(
                    [*messages], add_generation_prompt=True, return_dict=True, tokenize=True
                )
            except Exception as error:  # a template is a program of its own
                raise UsageError(f"a chat must suit the tokenizer's template: {error}") from error
        ids: list[int] = made["input_ids"]
        return ids


def read_prompt(prompt: Prompt, tokenizer: Shared | None) -> list[Any]:
    """The prompt's tokens, or what was given in their place."""
    if isinstance(prompt, str):
        return _needed(tokenizer).encode(prompt)
    if hasattr(prompt, "tolist"):
        ids = prompt.tolist()
        return ids[0] if len(ids) == 1 and isinstance(ids[0], list) else ids
    if not isinstance(prompt, Iterable):
        raise UsageError(f"a prompt must be a text, a chat or tokens, but got {type(prompt).__name__}")
    several = [*prompt]
    if several and all(isinstance(each, Mapping) for each in several):
        return _needed(tokenizer).encode_chat(several)
    return several


def _needed(tokenizer: Shared | None) -> Shared:
    if tokenizer is None:
        raise UsageError("texts and chats need a tokenizer; pass one to the Generator, or pass tokens")
    return tokenizer

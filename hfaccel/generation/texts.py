"""Text from tokens, piece by piece, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decodes(Protocol):
    """The part of a tokenizer that is used."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str: ...


UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer gives for part of a character


class Text:
    """Pieces of one text. A piece is given when later tokens can no longer change it, and when it cannot be
    the beginning of a stop string."""

    def __init__(self, tokenizer: Decodes, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._tokens: list[int] = []
        self._context = self._read = 0  # tokens before these are decoded only with later ones; are given
        self._held = ""  # it may become a stop string
        self.stopped = False

    def feed(self, token: int) -> str:
        """What another token makes certain."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        return self._passed(self._decoded())

    def end(self) -> str:
        """What is left when no token comes any more."""
        rest = "" if self.stopped else self._passed(self._decoded(last=True)) + self._held
        self._held = ""
        return rest

    def _decoded(self, last: bool = False) -> str:
        before = self._decode(self._tokens[self._context : self._read])
        now = self._decode(self._tokens[self._context :])
        if len(now) <= len(before) or (now.endswith(UNFINISHED) and not last):
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return now[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True) if tokens else ""

    def _passed(self, new: str) -> str:
        text = self._held + new
        places = [place for place in (text.find(each) for each in self._stop) if place >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        kept = max((_overlap(text, each) for each in self._stop), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text may begin a stop string."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)

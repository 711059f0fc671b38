"""One request: its tokens, how many of them are computed, and who is told about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hfaccel.generation.choosing import Choice, Chooser
from hfaccel.generation.settings import Settings
from hfaccel.generation.texts import Text

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"  # why a request ended


class Sink(Protocol):
    """Is told what becomes of a request, in the thread of the scheduler."""

    def started(self, reused: int) -> None: ...
    def token(self, choice: Choice) -> None: ...
    def finished(self, reason: str) -> None: ...
    def failed(self, error: BaseException) -> None: ...


@dataclass(eq=False)
class Request:
    """`ids` are prompt and new tokens; all but the last are computed when the next is due."""

    ids: list[int]
    settings: Settings
    sink: Sink
    text: Text | None = None  # where a stop string has to be found
    slot: int | None = None
    fed: int = 0  # tokens that are computed
    cancelled: bool = False
    prompt: int = field(init=False)  # tokens
    chooser: Chooser = field(init=False)

    def __post_init__(self) -> None:
        self.prompt = len(self.ids)
        self.chooser = Chooser(self.settings, self.prompt)

    @property
    def due(self) -> int:
        """Tokens that are not computed yet."""
        return len(self.ids) - self.fed

    def next_ids(self, most: int) -> Sequence[int]:
        return self.ids[self.fed : self.fed + most]

    def take(self, choice: Choice) -> str:
        """Add a token. Returns why it is the last; "" if it is not."""
        self.ids.append(choice.token)
        if self.text is not None:
            self.text.feed(choice.token)
        self.sink.token(choice)
        if choice.token in self.settings.eos or (self.text is not None and self.text.stopped):
            return STOP
        return LENGTH if len(self.ids) - self.prompt >= self.settings.max_new_tokens else ""

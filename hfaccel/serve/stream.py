"""`Stream`: what a Generator makes of one prompt, as it comes: one thread writes, others and loops read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from typing import NamedTuple, Protocol

from hfaccel.errors import UsageError
from hfaccel.generation.texts import Decodes, Text


class Chosen(Protocol):
    """A new token, and its logarithmic probability where that was asked for."""

    @property
    def token(self) -> int: ...
    @property
    def logprob(self) -> float | None: ...


class Generated(NamedTuple):
    """`finish_reason`: "stop" for an end token or a stop string, "length", or "cancelled". `text`: without
    special tokens, up to the stop string; None where the Generator has no tokenizer. `logprobs`: of the
    tokens, where they were asked for."""

    tokens: list[int]
    text: str | None
    finish_reason: str
    prompt_tokens: int
    reused_tokens: int  # of the prompt, which another request had computed
    logprobs: list[float]


class Stream:
    """Iterate, with `for` or `async for`, over tokens, or over `texts()` or `async_texts()`. `result()` or
    `await` wait for all of them.

    An iteration that ends early (by break, an error, or a cancelled task) cancels the request: nobody waits
    for the rest. An error of the request is raised where it is read."""

    def __init__(
        self,
        prompt_tokens: int,
        tokenizer: Decodes | None,
        stop: tuple[str, ...],
        ended: Callable[[str], None],
    ) -> None:
        self.prompt_tokens, self.reused_tokens = prompt_tokens, 0
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.cancel_request: Callable[[], None] = lambda: None
        self._tokenizer, self._stop, self._note = tokenizer, stop, ended
        self._reason = ""
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def done(self) -> bool:
        return bool(self._reason) or self._error is not None

    def cancel(self) -> None:
        """End the request after the token that is computed now. Nothing happens if it has ended."""
        if not self.done:
            self.cancel_request()

    def result(self, timeout: float | None = None) -> Generated:
        """All of it. Raises TimeoutError after `timeout` seconds, and what the request raised."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"the request has not ended after {timeout} s")
        return self._result()

    def __await__(self) -> Generator[object, None, Generated]:
        return self._awaited().__await__()

    def __iter__(self) -> Iterator[int]:
        count = 0
        try:
            while self._wait(count):
                yield self.tokens[count]
                count += 1
        finally:
            self.cancel()
        self._check()

    async def __aiter__(self) -> AsyncIterator[int]:
        count = 0
        try:
            while await self._wait_async(count):
                yield self.tokens[count]
                count += 1
        finally:
            self.cancel()
        self._check()

    def texts(self) -> Iterator[str]:
        """Pieces of the text, without special tokens, up to the stop string."""
        text = self._text()
        with closing(iter(self)) as tokens:  # type: ignore[type-var]
            yield from filter(None, map(text.feed, tokens))
        if rest := text.end():
            yield rest

    async def async_texts(self) -> AsyncIterator[str]:
        """The same in an event loop."""
        text = self._text()
        async with aclosing(self.__aiter__()) as tokens:  # type: ignore[type-var]
            async for token in tokens:
                if piece := text.feed(token):
                    yield piece
        if rest := text.end():
            yield rest

    # In the thread of the Generator

    def started(self, reused: int) -> None:
        self.reused_tokens = reused

    def token(self, choice: Chosen) -> None:
        with self._changed:
            if choice.logprob is not None:
                self.logprobs.append(choice.logprob)
            self.tokens.append(choice.token)
            self._wake()

    def finished(self, reason: str) -> None:
        self._note(reason)
        with self._changed:
            self._reason = reason
            self._wake()

    def failed(self, error: BaseException) -> None:
        self._note("")
        with self._changed:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            try:
                waiter.get_loop().call_soon_threadsafe(_end, waiter)
            except RuntimeError:
                if not waiter.get_loop().is_closed():
                    raise  # if the loop is closed, nobody waits

    # Where it is read

    def _wait(self, count: int) -> bool:
        """Whether there are more tokens than `count`, once that is known."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.tokens) > count or self.done)
        return len(self.tokens) > count

    async def _wait_async(self, count: int) -> bool:
        while len(self.tokens) <= count and not self.done:
            await self._next_change(lambda: len(self.tokens) > count)
        return len(self.tokens) > count

    async def _next_change(self, has_come: Callable[[], bool]) -> None:
        waiter = asyncio.get_running_loop().create_future()
        with self._changed:
            if has_come() or self.done:
                return
            self._waiters.append(waiter)
        await waiter

    async def _awaited(self) -> Generated:
        try:
            while not self.done:
                await self._next_change(lambda: False)
        finally:
            self.cancel()
        return self._result()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _result(self) -> Generated:
        self._check()
        text = None
        if self._tokenizer is not None:
            made = self._text()
            text = "".join([*map(made.feed, self.tokens), made.end()])
        return Generated(
            self.tokens, text, self._reason, self.prompt_tokens, self.reused_tokens, self.logprobs
        )

    def _text(self) -> Text:
        if self._tokenizer is None:
            raise UsageError("texts need a tokenizer; pass one to the Generator")
        return Text(self._tokenizer, self._stop)


def _end(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():  # its task was cancelled meanwhile
        waiter.set_result(None)

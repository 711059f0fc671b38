"""`Batcher`: concurrent `await batcher(item)` become calls of one function with lists, in one thread.

The event loop accepts, cancels and answers requests. A worker thread takes batches (`forming`) and computes,
so the loop stays free and torch has one team of OpenMP threads. They share a queue under one lock.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar, cast

from hfaccel.errors import HfaccelError, UsageError, check_count
from hfaccel.serve.calling import Item, Request, check_function, deliver, run
from hfaccel.serve.forming import Limits, drained_in, next_batch, pace, starts_in

In = TypeVar("In")
Out = TypeVar("Out")


class Overloaded(HfaccelError):
    """The queue is full. `retry_after`: seconds until it is empty at the recent pace."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def overloaded(most: int, seconds: float) -> Overloaded:
    """For a request beyond the `most` that may wait, of which a place is free in about so many seconds."""
    rule = f"at most {most} requests may wait, and that many do"
    return Overloaded(f"{rule}; retry in {seconds:.1f} s, or raise max_queue", seconds)


class Closed(HfaccelError):
    """The batcher takes no more requests: `close()` was called."""


class Counts(NamedTuple):
    """Numbers of requests: the first two at present, the others since the start."""

    waiting: int
    running: int  # in the batch that is computed, including requests that were cancelled meanwhile
    accepted: int
    answered: int  # with a result or an exception
    cancelled: int
    refused: int  # Overloaded or Closed


class Batcher(Generic[In, Out]):
    """Gathers concurrent requests into batches.

    `function` takes a list of items and returns one result for each, in order; it runs in a thread of its
    own. If `function` raises, it is called again with each item alone, so that a bad item fails only its own
    request: `function` must not have effects that cannot be repeated.

    `max_tokens`: of a padded batch (the longest item's tokens times the number of items). `max_batch`: items
    in a batch. `max_delay`: seconds that a request waits for others while the worker is free; with 0.0, a
    batch consists of the requests that arrived during the previous batch. `max_queue`: requests that may
    wait; a further request raises Overloaded. `call_tokens`: the fixed cost of a call, in tokens; up to this
    many tokens of padding are accepted to save a call. The default suits float32 encoders; int8 needs more,
    and a model that skips padding as many as `max_tokens`. `idle_release`: seconds without a request after
    which the memory that the allocator keeps for the next batch goes back to the system; None: never.
    `size`: returns an item's number of tokens. `prepare`: converts an item before `size` sees it, for example
    into tokens; runs in a second thread.

    A batcher belongs to the event loop in which it is first used. Raises UsageError for a limit that breaks
    its rule.
    """

    def __init__(
        self,
        function: Callable[[list[Item]], Iterable[Out]],
        *,
        max_tokens: int = 1024,
        max_batch: int = 64,
        max_delay: float = 0.0,
        max_queue: int = 256,
        call_tokens: int = 16,
        idle_release: float | None = 60.0,
        size: Callable[[Item], int] = len,
        prepare: Callable[[In], Item] | None = None,
    ) -> None:
        counted = dict(
            max_tokens=max_tokens, max_batch=max_batch, max_queue=max_queue, call_tokens=call_tokens
        )
        for name, value in counted.items():
            check_count(name, value)
        if not isinstance(max_delay, int | float) or not 0 <= max_delay < threading.TIMEOUT_MAX:
            raise UsageError(f"`max_delay >= 0` seconds must hold, but got {max_delay!r}; 0.005 is 5 ms")
        if idle_release is not None and not (
            isinstance(idle_release, int | float) and 0 < idle_release < threading.TIMEOUT_MAX
        ):
            raise UsageError(
                f"`idle_release > 0` seconds must hold, but got {idle_release!r}; None keeps the memory"
            )
        for name, given in (("function", function), ("size", size), ("prepare", prepare or len)):
            check_function(name, given)
        self._function, self._size, self._prepare = function, size, prepare
        self._limits, self._max_queue = Limits(max_tokens, max_batch, max_delay, call_tokens), max_queue
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hfaccel-serve")
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="hfaccel-prepare")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle_release = idle_release
        # Only the loop's thread touches these.
        self._pending = self._accepted = self._cancelled = self._refused = 0
        self._idle = asyncio.Event()  # nothing is pending
        self._idle.set()
        self._release: asyncio.TimerHandle | None = None  # runs while nothing is pending
        # Both threads touch these, under the lock.
        self._changed = threading.Condition()
        self._queue: list[Request] = []  # accepted and not yet in a batch, in order of arrival
        self._running = 0
        self._working = False  # if set, the worker will read the queue again before it stops
        self._closing = False
        self._pace: float | None = None  # seconds per request

    async def __call__(self, item: In) -> Out:
        """The result of `function` for this item. Raises what `function` raised for this item.

        Raises Overloaded, or Closed after `close()`. A request that is cancelled while it waits leaves the
        queue; the result of a request that is cancelled while it runs is dropped.
        """
        request = self._accept(item)
        try:
            if self._prepare is not None:
                loop = request.answer.get_loop()
                request.item = await loop.run_in_executor(self._preparer, self._prepare, item)
            self._enqueue(request, max(1, self._size(request.item)))
            answer = await request.answer
        except asyncio.CancelledError:
            self._cancelled += 1
            raise
        finally:
            self._leave(request)
        if answer.error is None:
            return cast(Out, answer.value)
        try:
            raise answer.error
        finally:
            del answer, request  # the error's traceback refers to this frame, which must not refer to it

    async def close(self) -> None:
        """Refuse new requests, finish those that were accepted, end the threads. May be called repeatedly."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._stay_awake()
        if self._loop is None or not self._loop.is_closed():  # requests end with their loop
            await self._idle.wait()
        for executor in (self._preparer, self._worker):
            await asyncio.to_thread(executor.shutdown)  # a batch of cancelled requests may still run

    async def __aenter__(self) -> Batcher[In, Out]:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    @property
    def counts(self) -> Counts:
        with self._changed:
            waiting, running = len(self._queue), self._running
        answered = self._accepted - self._pending - self._cancelled
        return Counts(waiting, running, self._accepted, answered, self._cancelled, self._refused)

    # In the event loop

    def _accept(self, item: In) -> Request:
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise UsageError("a Batcher belongs to one event loop, but this is another; make one for each")
        self._loop = loop
        with self._changed:
            refusal = self._refusal()
            if refusal is None:
                request = Request(item, loop.create_future(), time.monotonic())
                self._queue.append(request)
        if refusal is not None:
            self._refused += 1
            raise refusal
        self._stay_awake()
        self._accepted += 1
        self._pending += 1
        self._idle.clear()
        return request

    def _refusal(self) -> HfaccelError | None:
        if self._closing:
            return Closed("this Batcher was closed and takes no more requests; make a new one")
        if len(self._queue) < self._max_queue:
            return None
        seconds = drained_in(len(self._queue) + self._running, self._pace)
        return overloaded(self._max_queue, seconds)

    def _enqueue(self, request: Request, size: int) -> None:
        with self._changed:
            request.size = size
            if self._working:
                self._changed.notify()
            else:
                self._working = True
                self._worker.submit(self._work)

    def _leave(self, request: Request) -> None:
        with self._changed:
            if request in self._queue:  # the request was cancelled, or could not be prepared
                self._queue.remove(request)
                self._changed.notify()
        self._pending -= 1
        if self._pending == 0:
            self._idle.set()
            if self._idle_release is not None and not self._closing:
                assert self._loop is not None
                self._release = self._loop.call_later(self._idle_release, self._worker.submit, release)

    def _stay_awake(self) -> None:
        if self._release is not None:
            self._release.cancel()
            self._release = None

    # In the worker thread

    def _work(self) -> None:
        """Compute batches until nothing waits."""
        assert self._loop is not None
        while batch := self._take():
            started = time.monotonic()
            answers = run(self._function, [request.item for request in batch])
            with self._changed:
                self._running = 0
                self._pace = pace(self._pace, time.monotonic() - started, len(batch))
            try:
                self._loop.call_soon_threadsafe(deliver, batch, answers)
            except RuntimeError:
                if not self._loop.is_closed():
                    raise  # if the loop is closed, its requests have ended

    def _take(self) -> list[Request]:
        """Wait until a batch should start, and take it; empty when no request waits."""
        with self._changed:
            while ready := [request for request in self._queue if request.size]:
                sizes = [request.size for request in ready]
                waited = time.monotonic() - ready[0].accepted
                delay = 0.0 if self._closing else starts_in(sizes, waited, self._limits)
                if delay <= 0:
                    break
                self._changed.wait(delay)
            else:
                self._working = False
                return []
            batch = [ready[index] for index in next_batch(sizes, self._limits)]
            taken = set(batch)
            self._queue = [request for request in self._queue if request not in taken]
            self._running = len(batch)
            return batch


def release() -> None:
    """Give memory that the allocator keeps back to the system. Without torch there is little of it."""
    if "torch" in sys.modules:
        from hfaccel import memory  # imports torch

        memory.release()

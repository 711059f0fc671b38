"""Continuous batching: requests come and go between two steps, and nobody waits for the longest."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from hfaccel.engine.layers.slots import SlotsRefused
from hfaccel.errors import ModelError
from hfaccel.generation.choosing import Choice, choose_all
from hfaccel.generation.lanes import Feed, Lanes, OwnLanes
from hfaccel.generation.prefixes import Reuse, choose, waits
from hfaccel.generation.request import CANCELLED, Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 256  # tokens of prompts: fewer would use the processor less well, more would keep others waiting


class Scheduler:
    """A step computes up to `chunk` tokens of prompts in one call, and in another one token for each request
    whose prompt is computed. Not for several threads, except for `Request.cancelled`."""

    def __init__(self, model: PreTrainedModel, lanes: Lanes, chunk: int = CHUNK, reuse: bool = True) -> None:
        self._model, self._chunk, self._reuse = model, chunk, reuse
        self.lanes = lanes
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.reused = self.computed = 0  # tokens of prompts: copied; computed
        self.made = self.steps = 0  # new tokens; steps
        self._free = list(range(lanes.count))  # the one that was used longest ago first
        self._held: dict[int, list[int]] = {}  # tokens that lie in a slot

    @property
    def is_idle(self) -> bool:
        return not (self.waiting or self.running)

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def step(self) -> None:
        """Compute one step. Errors go to the requests that they concern."""
        self._drop_cancelled()
        if self._model.training:
            self.fail_all(ModelError("a model must be in eval mode to generate; call model.eval()"))
            return
        self.steps += 1
        try:
            self._compute(self._prompt_feeds())
            self._compute([(request, 1) for request in self.running if request.due == 1])
        except SlotsRefused as refused:
            self._leave_slots(str(refused))

    def fail_all(self, error: BaseException) -> None:
        for request in [*self.running, *self.waiting]:
            self._fail(request, error)
        self.waiting.clear()

    # Who runs

    def _drop_cancelled(self) -> None:
        for request in [each for each in self.running if each.cancelled]:
            self._end(request, CANCELLED)
        for request in [each for each in self.waiting if each.cancelled]:
            self.waiting.remove(request)
            request.sink.finished(CANCELLED)

    def _prompt_feeds(self) -> list[tuple[Request, int]]:
        """Which prompts are computed in this step, and how many tokens of each."""
        left, feeds = self._chunk, []
        for request in self.running:
            if request.due > 1 and left > 0:
                feeds.append((request, self._share(request, left)))
                left -= feeds[-1][1]
        while left > 0 and self.waiting and self._free:
            request = self.waiting[0]
            if not self._start(request, feeds):
                break
            self.waiting.popleft()
            if request.due > 1:
                feeds.append((request, self._share(request, left)))
                left -= feeds[-1][1]
        return feeds

    def _share(self, request: Request, left: int) -> int:
        """A cache of transformers is given a prompt at once: not every model can continue one."""
        return request.due if self.lanes.reason else min(request.due, left)

    def _start(self, request: Request, feeds: Sequence[tuple[Request, int]]) -> bool:
        """Give a request a slot, unless it had better wait for the tokens of this step."""
        reuse = Reuse(self._free[0], self._free[0], 0)
        if self._reuse and self.lanes.reuses:
            reuse = choose(request.ids, self._held, self._free)
            if waits(request.ids, reuse.tokens, [each.ids[: each.fed + count] for each, count in feeds]):
                return False
        if reuse.slot != reuse.source:
            self.lanes.copy(reuse.source, reuse.slot, reuse.tokens)
        self._free.remove(reuse.slot)
        self._held[reuse.slot] = request.ids[: reuse.tokens]
        request.slot, request.fed = reuse.slot, reuse.tokens
        self.reused += reuse.tokens
        self.running.append(request)
        request.sink.started(reuse.tokens)
        return True

    # What is computed

    def _compute(self, work: Iterable[tuple[Request, int]]) -> None:
        work = list(work)
        if not work:
            return
        feeds = [_feed(request, count) for request, count in work]
        computed = self.lanes.compute(feeds)
        given = []
        for place, ((request, _), feed) in enumerate(zip(work, feeds, strict=True)):
            if place in computed.errors:
                self._fail(request, computed.errors[place])
                continue
            request.fed += len(feed.ids)
            self._held[feed.slot].extend(feed.ids)
            self.computed += len(feed.ids) if request.fed <= request.prompt else 0
            if feed.wanted:
                given.append(request)
        self._choose(given, computed.logits)

    def _choose(self, requests: Sequence[Request], logits: torch.Tensor) -> None:
        if not requests:
            return
        choosers, ids = [each.chooser for each in requests], [each.ids for each in requests]
        for request, choice in zip(requests, choose_all(choosers, ids, logits), strict=True):
            if isinstance(choice, Exception):
                self._fail(request, choice)
                continue
            self.made += 1
            self._give(request, choice)

    def _give(self, request: Request, choice: Choice) -> None:
        try:
            reason = request.take(choice)
        except BaseException as error:  # noqa: BLE001 - of its tokenizer: raised where the request was made
            self._fail(request, error)
            return
        if reason:
            self._end(request, reason)

    # Who ends

    def _end(self, request: Request, reason: str) -> None:
        self._release(request)
        request.sink.finished(reason)

    def _fail(self, request: Request, error: BaseException) -> None:
        self._release(request)
        request.sink.failed(error)

    def _release(self, request: Request) -> None:
        if request.slot is None:
            return
        self.running.remove(request)
        self.lanes.release(request.slot)
        self._free.append(request.slot)
        request.slot = None

    def _leave_slots(self, reason: str) -> None:
        """A layer has changed so that its own forward runs: all tokens are computed again."""
        self.lanes = OwnLanes(self._model, self.lanes.count, reason)
        self._held = {slot: [] for slot in self._held}
        for request in self.running:
            request.fed = 0


def _feed(request: Request, count: int) -> Feed:
    assert request.slot is not None
    ids = request.next_ids(count)
    return Feed(request.slot, request.fed, ids, wanted=len(ids) == request.due)

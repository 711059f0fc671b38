"""`Generator`: many prompts continued at once by one model, in a thread of its own.

    with hfaccel.serve.Generator(hfaccel.optimize(model), tokenizer) as generator:
        for piece in generator.submit("Once upon a time", max_new_tokens=50).texts():
            print(piece, end="")

Any thread submits, reads and cancels. The worker thread has the scheduler (`hfaccel.generation`); both share
the requests that have arrived, under one lock.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from hfaccel.errors import HfaccelError, ModelError, UsageError, check_count
from hfaccel.generation.config import unknown
from hfaccel.generation.settings import check_prompt, make_settings
from hfaccel.generation.texts import Text
from hfaccel.serve.batcher import Closed, overloaded
from hfaccel.serve.forming import drained_in, pace
from hfaccel.serve.prompts import Prompt, Shared, read_prompt
from hfaccel.serve.stream import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfaccel.generation.request import Request

MOST_TOKENS = 4096  # of a request, unless the user asks for more
TURN = 0.1  # seconds after which the worker thread asks whether the interpreter ends


class GeneratorCounts(NamedTuple):
    """The first two at present, the others since the start: requests, then tokens, then steps."""

    waiting: int
    running: int
    accepted: int
    finished: int
    cancelled: int
    failed: int
    refused: int  # Overloaded or Closed
    prompt_tokens: int  # computed
    reused_tokens: int  # of prompts, which another request had computed
    new_tokens: int
    steps: int


class Generator:
    """Continues many prompts at once; requests join and leave between two tokens.

    `slots`: requests that are computed at once; others wait. `tokens`: of a prompt and its continuation
    together; by default the model's limit, at most 4096. Memory for keys and values is taken as it is filled.
    `chunk`: tokens of prompts that are computed between two tokens of the running requests: a lower number
    keeps those fluent. `max_queue`: requests that may wait; a further one raises Overloaded. `reuse`: a
    prompt that begins as another one does takes over what was computed for that.

    What a request does not set is taken from the model's generation config. Nothing else may call the model
    or its tokenizer before the generator is closed. A generator belongs to one process. Raises ModelError for
    anything but a decoder in eval mode, UsageError for a limit that breaks its rule.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        slots: int = 16,
        tokens: int | None = None,
        chunk: int = 256,
        max_queue: int = 256,
        reuse: bool = True,
    ) -> None:
        for name, value in dict(slots=slots, chunk=chunk, max_queue=max_queue).items():
            check_count(name, value)
        _check_model(model)
        self._tokens, self._max_queue, self._slots = _limit(model, tokens), max_queue, slots
        self._tokenizer = None if tokenizer is None else Shared(tokenizer)
        self._vocabulary: int = model.config.get_text_config().vocab_size
        self._defaults = _defaults(model)
        from hfaccel.generation.lanes import make_lanes  # imports torch
        from hfaccel.generation.scheduler import Scheduler

        self._scheduler = Scheduler(model, make_lanes(model, slots, self._tokens), chunk, reuse)
        self._process = os.getpid()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hfaccel-generate")
        # Several threads touch these, under the lock.
        self._changed = threading.Condition()
        self._arrived: list[Request] = []
        self._pending: set[Request] = set()
        self._working = self._closing = self._cancelling = False
        self._accepted = self._refused = 0
        self._ended: dict[str, int] = {}  # reason -> requests; "" for errors
        self._pace: float | None = None  # seconds per request
        self._last_end = 0.0

    @property
    def reason(self) -> str:
        """Why requests are computed one after another; "" where all are computed together."""
        return self._scheduler.lanes.reason

    def submit(self, prompt: Prompt, max_new_tokens: int | None = None, **settings: Any) -> Stream:
        """Begin to continue a prompt: a text, a chat (a list of messages), or tokens. Returns at once.

        `settings`: min_new_tokens, do_sample, temperature, top_k, top_p, min_p, repetition_penalty, seed,
        stop (texts), eos_token_id (one or several; () for none), logprobs (True: of each token). Raises
        Overloaded where the queue is full, Closed after `close()`, UsageError for a wrong prompt or setting.
        """
        if self._process != os.getpid():
            raise UsageError("a Generator belongs to one process, but this is a fork; make one after forking")
        ids = check_prompt(read_prompt(prompt, self._tokenizer), self._vocabulary, self._tokens)
        asked = {**settings, "max_new_tokens": max_new_tokens}
        request, stream = self._made(ids, asked)
        with self._changed:
            refusal = self._refusal()
            if refusal is not None:
                self._refused += 1
                raise refusal
            if not self._working:
                self._begin_work()
            self._accepted += 1
            self._arrived.append(request)
            self._pending.add(request)
        return stream

    def _begin_work(self) -> None:
        try:
            self._worker.submit(self._work)
        except RuntimeError as error:
            raise Closed(f"no thread can be started for this Generator ({error})") from None
        self._working, self._last_end = True, time.monotonic()

    def close(self, cancel: bool = False) -> None:
        """Refuse new requests, finish those that were accepted, end the thread. `cancel`: requests that are
        not finished raise Closed. May be called repeatedly."""
        if self._process != os.getpid():
            return  # a fork has no thread that could end
        with self._changed:
            self._closing = True
            self._cancelling = self._cancelling or cancel
            self._changed.wait_for(lambda: not self._working)
        self._worker.shutdown()

    async def aclose(self, cancel: bool = False) -> None:
        """The same in an event loop, which is not blocked."""
        await asyncio.to_thread(self.close, cancel)

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self.close(cancel=kind is not None)

    async def __aenter__(self) -> Generator:
        return self

    async def __aexit__(self, kind: object, *error: object) -> None:
        await self.aclose(cancel=kind is not None)

    @property
    def counts(self) -> GeneratorCounts:
        scheduler = self._scheduler
        with self._changed:
            ended = dict(self._ended)
            running = len(scheduler.running)
            waiting = len(self._pending) - running
        failed, cancelled = ended.pop("", 0), ended.pop("cancelled", 0)
        finished = sum(ended.values())
        of_requests = self._accepted, finished, cancelled, failed, self._refused
        tokens = scheduler.computed, scheduler.reused, scheduler.made
        return GeneratorCounts(max(0, waiting), running, *of_requests, *tokens, scheduler.steps)

    def _made(self, ids: list[int], asked: Mapping[str, object]) -> tuple[Request, Stream]:
        from hfaccel.generation.request import Request

        settings = make_settings(self._defaults, asked, self._tokens - len(ids))
        if settings.stop and self._tokenizer is None:
            raise UsageError("`stop` needs a tokenizer; pass one to the Generator")
        stream = Stream(len(ids), self._tokenizer, settings.stop, lambda reason: self._leave(request, reason))
        text = Text(self._tokenizer, settings.stop) if self._tokenizer and settings.stop else None
        request = Request(ids, settings, stream, text)
        stream.cancel_request = lambda: setattr(request, "cancelled", True)
        return request, stream

    def _refusal(self) -> HfaccelError | None:
        if self._closing:
            return Closed("this Generator was closed and takes no more requests; make a new one")
        if len(self._pending) < self._slots + self._max_queue:
            return None
        seconds = drained_in(len(self._pending) - self._slots, self._pace)
        return overloaded(self._max_queue, seconds)

    # In the worker thread

    def _work(self) -> None:
        """Compute steps until nothing is left to do; or for a while, if the executor takes the next turn."""
        until = time.monotonic() + TURN
        while self._take_arrived():
            try:
                self._scheduler.step()
            except BaseException as error:  # noqa: BLE001 - raised where the requests were made
                self._scheduler.fail_all(error)
            if time.monotonic() > until:
                try:
                    self._worker.submit(self._work)
                    return
                except RuntimeError:  # the interpreter ends, or the executor was shut down
                    self._scheduler.fail_all(Closed("the program ends; its requests end with it"))

    def _take_arrived(self) -> bool:
        """Whether there is something to compute."""
        with self._changed:
            arrived, self._arrived = self._arrived, []
        for request in arrived:
            self._scheduler.add(request)
        if self._cancelling:
            self._scheduler.fail_all(Closed("this Generator was closed before the request was finished"))
        with self._changed:
            if self._arrived or not self._scheduler.is_idle:
                return True
            self._working = False
            self._changed.notify_all()
            return False

    def _leave(self, request: Request, reason: str) -> None:
        now = time.monotonic()
        with self._changed:
            self._pending.discard(request)
            self._ended[reason] = self._ended.get(reason, 0) + 1
            self._pace = pace(self._pace, now - self._last_end, 1)
            self._last_end = now


def _check_model(model: Any) -> None:
    if hasattr(model, "postprocess") or not hasattr(model, "generate"):
        raise ModelError(
            f"a decoder is expected, but got {type(model).__name__}; pass what AutoModelForCausalLM."
            "from_pretrained or hfaccel.optimize returned (of a pipeline: pipe.model)"
        )
    if model.config.is_encoder_decoder:
        raise ModelError(f"{type(model).__name__} has an encoder, but only decoders continue prompts")
    if model.training:
        raise ModelError("the model must be in eval mode, but is in training mode; call model.eval()")


def _limit(model: Any, tokens: int | None) -> int:
    """Tokens of a request."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if tokens is None:
        return min(most or MOST_TOKENS, MOST_TOKENS)
    check_count("tokens", tokens)
    if most is not None and tokens > most:
        raise UsageError(f"`tokens <= {most}`, the model's limit, must hold, but got {tokens}")
    return tokens


def _defaults(model: Any) -> dict[str, object]:
    config: dict[str, object] = model.generation_config.to_dict()
    if strange := unknown(config):
        raise UsageError(
            f"the model's generation config sets {', '.join(strange)}, which a Generator does not do; "
            "set them to None in model.generation_config, or call model.generate"
        )
    return config

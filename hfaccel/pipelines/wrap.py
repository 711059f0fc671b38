"""A transformers pipeline whose loop is hfaccel's: same class for isinstance, same arguments and results.

Only the loop is replaced (`get_iterator`). What a task does with one input, `preprocess`, `_forward` and
`postprocess`, is transformers' own.
"""

from __future__ import annotations

import collections
import copy
import functools
from contextvars import ContextVar
from typing import Any

from transformers.pipelines import Pipeline

from hfaccel.outcome import Outcome
from hfaccel.pipelines.call import Call, begin
from hfaccel.pipelines.results import Results, Watched
from hfaccel.pipelines.schedule import TOKENS
from hfaccel.pipelines.tasks import IN_FRONT, OWN_LOOP
from hfaccel.upstream import Need, problem
from hfaccel.upstream.of_pipelines import SEAMS, calls_generate, collate_of

_progress: ContextVar[bool] = ContextVar("hfaccel_progress", default=False)


class Scheduled(Pipeline):  # type: ignore[misc]
    """Stands in front of a pipeline's class (`hfaccel_stock`)."""

    hfaccel_stock: type
    hfaccel_tokens = TOKENS  # of one batch, padding included
    hfaccel_progress = False  # the default of `progress`

    def __call__(self, *arguments: Any, progress: bool | None = None, **settings: Any) -> Any:
        """As the pipeline's own; `progress=True` shows a bar over the inputs of a list or stream."""
        token = _progress.set(self.hfaccel_progress if progress is None else progress)
        try:
            return super().__call__(*arguments, **settings)
        finally:
            _progress.reset(token)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Any:
        parameters = preprocess_params, forward_params, postprocess_params
        # Built in any case: it checks the arguments, and knows how to pad.
        stock = super().get_iterator(inputs, num_workers, batch_size, *parameters)
        reason = why_not(self) or _why_not_now(num_workers)
        if reason:
            self.hfaccel_count(reason)
            results = stock
        else:
            call = Call(self, collate_of(stock), batch_size, *parameters)
            start = functools.partial(begin, call, inputs, self.hfaccel_tokens, self.hfaccel_count)
            results = Results(inputs, start)
        return Watched(results, inputs) if _progress.get() else results

    def hfaccel_count(self, reason: str) -> None:
        """Count a call that ran otherwise than it should, for the report."""
        self.__dict__.setdefault("hfaccel_stock_calls", collections.Counter())[reason] += 1

    def hfaccel_own(self, output: Any, length: int, longest: int) -> Any:
        """What of one row of a batch's output belongs to the row's own tokens; see tasks.py."""
        return output

    def save_pretrained(self, *arguments: Any, **settings: Any) -> None:
        unwrap(copy.copy(self)).save_pretrained(*arguments, **settings)  # it compares its class by identity

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, (self.hfaccel_stock,), self.__dict__


def wrap(pipe: Any) -> Any:
    """Give the pipeline hfaccel's loop, in place. An object that is no transformers pipeline stays."""
    if isinstance(pipe, Pipeline) and not isinstance(pipe, Scheduled) and not problem(Need.PIPELINES):
        stock: Any = type(pipe)
        pipe.__class__ = scheduled_class(stock)
    return pipe


def unwrap(pipe: Any) -> Any:
    """Undo `wrap`, in place."""
    if isinstance(pipe, Scheduled):
        pipe.__class__ = pipe.hfaccel_stock
        pipe.__dict__.pop("hfaccel_stock_calls", None)
        pipe.__dict__.pop("hfaccel_progress", None)
    return pipe


def outcome(pipe: Any) -> Outcome:
    """The line of a report about this pipeline's loop."""
    subject = f"pipeline {getattr(pipe, 'task', '') or type(pipe).__name__}"
    reason = why_not(pipe)
    if reason:
        return Outcome(subject, False, f"transformers' own loop runs: {reason}")
    return Outcome(
        subject, True, "inputs are prepared and results made beside the model; similar lengths share batches"
    )


def stock_calls(pipe: Any) -> dict[str, int]:
    """Reason -> calls that took transformers' own loop, or prepared inputs in line."""
    return dict(getattr(pipe, "hfaccel_stock_calls", {}))


def why_not(pipe: Any) -> str:
    """Why this pipeline keeps transformers' loop; "" where it gets hfaccel's."""
    if not isinstance(pipe, Pipeline):
        return "it is not a transformers.Pipeline"
    if reason := problem(Need.PIPELINES):
        return reason
    for name in SEAMS:
        module = getattr(type(pipe), name).__module__
        if module.partition(".")[0] not in ("transformers", "hfaccel"):
            return f"its {name} is the program's own ({module})"
    for kind in type(pipe).__mro__:
        if kind.__name__ in OWN_LOOP:
            return OWN_LOOP[kind.__name__]
    if calls_generate(pipe) and pipe.model.can_generate() and pipe.task != "automatic-speech-recognition":
        return "generation forms its own batches"
    return ""


def _why_not_now(num_workers: int) -> str:
    return f"num_workers={num_workers} asks for transformers' worker processes" if num_workers > 0 else ""


@functools.cache
def scheduled_class(stock: Any) -> type:
    """A subclass of the class `stock` with its name; the same class for the same argument."""
    front = [mixin for kind, mixin in IN_FRONT.items() if issubclass(stock, kind)]
    members = {"hfaccel_stock": stock, "__module__": stock.__module__, "__doc__": stock.__doc__}
    return type(stock.__name__, (*front, Scheduled, stock), members)


def _new(stock: type) -> Any:
    return object.__new__(scheduled_class(stock))

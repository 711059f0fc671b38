"""The class in front of a pipeline's own class: runs hfaccel's loop, or says why transformers' loop runs.

Only the loop is replaced (`get_iterator`). The steps of a task for one input, `preprocess`, `_forward` and
`postprocess`, are transformers' own.
"""

from __future__ import annotations

import collections
import copy
import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from transformers.pipelines import Pipeline

from hfaccel.pipelines.call import Call, begin
from hfaccel.pipelines.results import Results, Watched
from hfaccel.pipelines.schedule import TOKENS
from hfaccel.replacement import PREFIX, Replacement, undo
from hfaccel.upstream import Need, problem
from hfaccel.upstream.of_pipelines import SEAMS, calls_generate, collate_of

STOCK_CALLS = f"{PREFIX}stock_calls"  # attribute of a pipeline: reason -> calls
# transformers' class -> why its own loop runs
OWN_LOOP = {
    "MaskGenerationPipeline": "its preprocessing runs the model",
}

GENERATES = "generation forms its own batches"

_progress: ContextVar[bool] = ContextVar("hfaccel_progress", default=False)


class Setting:
    """An attribute for users to set on a pipeline, kept where `undo` finds it."""

    def __init__(self, default: object) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.place = f"_{name}"

    def __get__(self, pipe: object, owner: type | None = None) -> Any:
        return self.default if pipe is None else vars(pipe).get(self.place, self.default)

    def __set__(self, pipe: object, value: object) -> None:
        vars(pipe)[self.place] = value


class Scheduled(Pipeline, Replacement):  # type: ignore[misc]
    """Stands in front of a pipeline's class. Pipeline comes first: the layouts of both must be equal."""

    hfaccel_continues = False  # the task generates, and may have a loop of its own
    hfaccel_tokens = Setting(TOKENS)  # of one batch, padding included
    hfaccel_progress = Setting(False)  # the default of `progress`

    def __call__(self, *arguments: object, progress: bool | None = None, **settings: object) -> object:
        """Call the pipeline; `progress=True` shows a bar over the inputs of a list or stream."""
        token = _progress.set(self.hfaccel_progress if progress is None else progress)
        try:
            return super().__call__(*arguments, **settings)
        finally:
            _progress.reset(token)

    def get_iterator(
        self,
        inputs: object,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, object],
        forward_params: dict[str, object],
        postprocess_params: dict[str, object],
    ) -> object:
        parameters = preprocess_params, forward_params, postprocess_params
        # Built in any case: transformers' iterator checks the arguments, and has the function that pads.
        stock = super().get_iterator(inputs, num_workers, batch_size, *parameters)
        reason = why_not(self) or _why_not_now(num_workers)
        start: Callable[[], Any] | str = reason
        if not reason or reason == GENERATES:
            call = Call(self, collate_of(stock), batch_size, *parameters)
            start = functools.partial(begin, call, inputs, self.hfaccel_tokens, self.hfaccel_count)
            if reason:
                start = self.hfaccel_own_loop(inputs, call)
        if isinstance(start, str):
            self.hfaccel_count(start)
        results = stock if isinstance(start, str) else Results(inputs, start)
        return Watched(results, inputs) if _progress.get() else results

    def hfaccel_own_loop(self, inputs: object, call: Call) -> Callable[[], object] | str:
        """Of a task that generates: what starts a loop over these inputs, or why transformers' loop runs."""
        return GENERATES

    def hfaccel_count(self, reason: str) -> None:
        """Count a call that did not run as intended, for the report."""
        self.__dict__.setdefault(STOCK_CALLS, collections.Counter())[reason] += 1

    def hfaccel_row(self, output: object, length: int, longest: int) -> object:
        """The part of one row of a batch's output that belongs to the row's own tokens; see tasks.py."""
        return output

    def save_pretrained(self, *arguments: object, **settings: object) -> None:
        stock = copy.copy(self)  # transformers compares the class by identity
        undo(stock)
        stock.save_pretrained(*arguments, **settings)


def why_not(pipe: object) -> str:
    """Why this pipeline keeps transformers' loop; "" if it gets hfaccel's."""
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
        return GENERATES
    return ""


def _why_not_now(num_workers: int) -> str:
    return f"num_workers={num_workers} asks for transformers' worker processes" if num_workers > 0 else ""

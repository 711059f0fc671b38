"""The kinds of work, ready to be called: one function for each, which loads, optimizes and prepares."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch

from hfaccel.bench import subjects
from hfaccel.bench.answers import Array
from hfaccel.bench.sampling import Figures, Task
from hfaccel.bench.setting import STOCK, Setting
from hfaccel.bench.work import Generation, Pipeline, Shapes, Texts, Work
from hfaccel.comparison import represent
from hfaccel.optimization import optimize

SHOWN_ROWS = 4  # of a batch, whose results are compared number by number
LONGEST_TEXT = 256  # tokens; longer texts are cut


def make(subject: str, setting: Setting, work: Work) -> Task:
    """Raises HfaccelError with the reason where the setting cannot do this work here."""
    return TASKS[type(work)](subject, setting, work)


def optimized(thing: Any, setting: Setting) -> Any:
    """A model or pipeline as the setting wants it. Nothing applied is an error: the side would be stock."""
    model = getattr(thing, "model", thing)
    if setting.backend == STOCK:
        if setting.precision == "bf16":
            model.to(torch.bfloat16)
        return thing
    arguments: dict[str, Any] = dict(setting.optimize_arguments())
    if "dtype" in arguments:
        arguments["dtype"] = getattr(torch, arguments["dtype"])
    return optimize(thing, strict=True, inplace=True, **arguments)


def shapes(subject: str, setting: Setting, work: Shapes) -> Task:
    model = subjects.load(subject)
    ids = subjects.tokens(model.config, work.batch, work.length)
    model = optimized(model, setting)

    def forward() -> Any:
        with torch.inference_mode():
            return model(input_ids=ids)[0]

    def call() -> Figures:
        forward()
        return {}

    return Task(
        call, lambda: _numbers(forward()[:SHOWN_ROWS]), flops=lambda: _count_flops(call), least_calls=3
    )


def _numbers(tensor: torch.Tensor) -> Array:
    return cast(Array, tensor.float().numpy())


def _count_flops(call: Callable[[], object]) -> float:
    """Of the products in one call of the stock model."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


# Texts


def texts(subject: str, setting: Setting, work: Texts) -> Task:
    """Mean vectors of all texts, in batches of padded texts."""
    given = subjects.texts_of(work.name, work.texts)
    tokenizer = subjects.tokenizer_of(subject, given)
    model = optimized(subjects.load(subject), setting)
    longest = min(LONGEST_TEXT, subjects.longest_of(model.config) or LONGEST_TEXT)
    result: dict[int, torch.Tensor] = {}
    lengths = [len(ids) for ids in tokenizer(given, truncation=True, max_length=longest)["input_ids"]]
    parts = list(batches(lengths, work.batch, setting.token_budget))

    def call() -> Figures:
        ids = tokenizer(given, truncation=True, max_length=longest)["input_ids"]
        for part in parts:
            batch = tokenizer.pad({"input_ids": [ids[place] for place in part]}, return_tensors="pt")
            for place, vector in zip(part, represent(model, dict(batch)), strict=True):
                result[place] = vector
        return {}

    def answers() -> Array:
        call()
        return _numbers(torch.stack([result[place] for place in sorted(result)]))

    padded = sum(len(part) * max(lengths[place] for place in part) for part in parts)
    facts = {"tokens": sum(lengths), "padded_tokens": padded}
    return Task(call, answers, facts, flops=lambda: _count_flops(call))


def batches(lengths: Sequence[int], size: int, budget: int | None) -> Iterator[list[int]]:
    """Places of texts in input order by `size`, or, with a budget of padded tokens, by length."""
    places = sorted(range(len(lengths)), key=lambda place: lengths[place] if budget else 0)
    part: list[int] = []
    for place in places:
        full = len(part) == size if budget is None else (len(part) + 1) * lengths[place] > budget
        if part and full:
            yield part
            part = []
        part.append(place)
    if part:
        yield part


def pipeline(subject: str, setting: Setting, work: Pipeline) -> Task:
    import transformers

    given = subjects.texts_of(work.name, work.texts)
    tokenizer = subjects.tokenizer_of(subject, given)
    if tokenizer.model_max_length > LONGEST_TEXT:
        tokenizer.model_max_length = LONGEST_TEXT
    pipe = transformers.pipeline(work.task, model=_model_for(subject, work.task), tokenizer=tokenizer)
    pipe = optimized(pipe, setting)
    arguments: dict[str, Any] = {"batch_size": work.batch}
    if work.task == "feature-extraction":
        arguments["tokenize_kwargs"] = {"truncation": True}
    else:
        arguments["truncation"] = True

    def call() -> Figures:
        list(pipe(list(given), **arguments))
        return {}

    def answers() -> Array:
        results = list(pipe(list(given), **arguments))
        if work.task == "feature-extraction":  # how many rows of padding are returned depends on the batch
            return np.asarray([result[0][0] for result in results], np.float32)
        return np.asarray(list(numbers(results)), np.float32)

    return Task(call, answers)


def _model_for(subject: str, task: str) -> Any:
    """The name, of which the pipeline makes the class for its task; for random weights the model itself."""
    return subjects.load(subject) if subject.startswith("random:") else subject


def numbers(value: object) -> Iterator[float]:
    """All numbers of what a pipeline returned, in their order."""
    if isinstance(value, dict):
        value = [value[name] for name in sorted(value)]
    if isinstance(value, list | tuple):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float | np.number):
        yield float(value)


# Generation


class Clock:
    """Notes when the logits of each token are known: a logits processor that changes nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return logits


def generation(subject: str, setting: Setting, work: Generation) -> Task:
    model = subjects.load(subject)
    prompt = subjects.tokens(model.config, work.batch, work.prompt)
    model = optimized(model, setting)
    fixed = {"min_new_tokens": work.new_tokens, "max_new_tokens": work.new_tokens, "do_sample": False}

    def generate(clock: Clock) -> torch.Tensor:
        mask = torch.ones_like(prompt)
        with torch.inference_mode():
            return cast(
                torch.Tensor,
                model.generate(prompt, attention_mask=mask, logits_processor=[clock], num_beams=1, **fixed),
            )

    def call() -> Figures:
        clock, start = Clock(), time.perf_counter()
        generate(clock)
        first, last = clock.times[0], clock.times[-1]
        figures = {"first_token": first - start}
        return figures | (
            {"per_token": (last - first) / (work.new_tokens - 1)} if work.new_tokens > 1 else {}
        )

    return Task(call, lambda: cast(Array, generate(Clock()).numpy()))


TASKS: dict[type[Work], Callable[..., Task]] = {
    Shapes: shapes,
    Texts: texts,
    Pipeline: pipeline,
    Generation: generation,
}

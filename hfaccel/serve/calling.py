"""Calls of the function of a Batcher: one answer for each item, whatever the function does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from hfaccel.errors import HfaccelError, UsageError

Item: TypeAlias = Any  # what `prepare` makes of a request, or the request itself


class Answer(NamedTuple):
    value: object = None
    error: BaseException | None = None


@dataclass(eq=False)  # two requests for equal items are not equal
class Request:
    item: Item
    answer: asyncio.Future[Answer]
    accepted: float  # seconds, monotonic
    size: int = 0  # tokens; 0 while it is being prepared


def check_function(name: str, given: object) -> None:
    """Raise UsageError for anything that cannot be called in a thread."""
    if not callable(given):
        raise UsageError(f"`{name}` must be a function, but got {given!r}")
    if inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(type(given).__call__):
        raise UsageError(
            f"`{name}` must be a plain function, because it runs in a thread, but got the async {given!r}"
        )


def run(function: Callable[[list[Item]], Iterable[object]], items: list[Item]) -> list[Answer]:
    """One answer for each item; the items of a batch that fails are computed one by one."""
    results: list[object] | None = None
    try:
        returned = function(items)
        if isinstance(returned, Iterable) and not isinstance(returned, str | bytes | Mapping):
            results = list(returned)
    except Exception as error:  # noqa: BLE001 - raised where the request was made
        if len(items) == 1:
            return [Answer(error=error)]
        return [run(function, [item])[0] for item in items]
    except BaseException as error:  # noqa: BLE001 - likewise; asks for an end, so no item is tried alone
        return [Answer(error=error)] * len(items)
    if results is not None and len(results) == len(items):
        return [Answer(value=result) for result in results]
    rule = "the function of a Batcher returns one result for each item, in order, "
    got = type(returned).__name__ if results is None else len(results)
    return [Answer(error=HfaccelError(f"{rule}but got {got} for {len(items)}")) for _ in items]


def deliver(batch: list[Request], answers: list[Answer]) -> None:
    for request, answer in zip(batch, answers, strict=True):
        if not request.answer.done():  # cancelled while it ran
            request.answer.set_result(answer)

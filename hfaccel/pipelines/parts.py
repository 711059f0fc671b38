"""The loop's records: inputs that were read, prepared or partly computed, and errors in place of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """Decides which model inputs may share a batch.

    `length`: tokens, if padding cannot change the result, so that batches may be formed freely; None if
    batches must follow the order of arrival. Only inputs with equal `keys` share a freely formed batch.
    """

    length: int | None = None
    keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Steps:
    """The steps of a pipeline for one input. An exception takes the place of a result: see `interrupts`."""

    prepare: Callable[[object], Iterator[tuple[object, bool]]]  # input -> model inputs; True for the last
    shape: Callable[[object], Shape]  # of a model input
    compute: Callable[[list[object]], list[object]]  # model inputs of one batch -> the output of each
    finish: Callable[[list[object]], object]  # outputs of all model inputs of one input -> its result


@dataclass(frozen=True)
class Failed:
    """Takes the place of a value."""

    error: BaseException


ASYNCHRONOUS = ("greenlet", "gevent", "eventlet")  # packages that end a greenlet by a BaseException


def interrupts(error: BaseException) -> bool:
    """Whether an error tells the program, or a greenlet, to end. Such an error is raised at once.

    Every other error is raised in place of its input's result, even if it is not an Exception: a panic in a
    tokenizer written in Rust is a BaseException.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return True
    package = type(error).__module__.partition(".")[0]
    return not isinstance(error, Exception) and package in ASYNCHRONOUS


@dataclass(frozen=True)
class Prepared:
    """One model input: part `part` of input number `index`; `is_last`: the last of the input's parts."""

    index: int
    part: int
    is_last: bool
    inputs: object
    shape: Shape


@dataclass
class Begun:
    """An input whose model inputs are being made; `count` of them are done."""

    index: int
    read: object
    rest: Iterator[tuple[object, bool]]
    count: int = 0


@dataclass
class Parts:
    """Outputs of one input, by part; `total` is None until its last part is known."""

    outputs: dict[int, object] = field(default_factory=dict)
    total: int | None = None

    def complete(self) -> bool:
        return len(self.outputs) == self.total

"""What the loop holds: inputs that were read, prepared or computed in part, and what stands for an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """What decides with which others a model input may share a batch.

    `length`: tokens, where padding cannot change the result and batches are therefore free; None where
    batches are those of the order of arrival. Only inputs with equal `keys` share a free batch.
    """

    length: int | None = None
    keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Steps:
    """What a pipeline does with one input. What it raises is given in its place: see `interrupts`."""

    prepare: Callable[[object], Iterator[tuple[object, bool]]]  # input -> model inputs; True with the last
    shape: Callable[[object], Shape]  # of a model input
    compute: Callable[[list[object]], list[object]]  # model inputs of one batch -> the output of each
    finish: Callable[[list[object]], object]  # outputs of all model inputs of one input -> its result


@dataclass(frozen=True)
class Failed:
    """Stands where a value would be."""

    error: BaseException


ASYNCHRONOUS = ("greenlet", "gevent", "eventlet")  # whose exceptions, if no Exception, come from outside


def interrupts(error: BaseException) -> bool:
    """Whether an error tells the program, or a greenlet, to end: then it is raised at once.

    Every other error is raised in the place of its input, whatever its class: a panic in a tokenizer that is
    written in Rust is no Exception.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return True
    package = type(error).__module__.partition(".")[0]
    return not isinstance(error, Exception) and package in ASYNCHRONOUS


@dataclass(frozen=True)
class Prepared:
    """One model input: part `part` of input number `index`; `is_last` of its parts."""

    index: int
    part: int
    is_last: bool
    inputs: object
    shape: Shape


@dataclass
class Begun:
    """An input whose model inputs are being made; `count` of them are."""

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

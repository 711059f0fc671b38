"""Two sides measured in turn, each in a process of its own: A B A B ...

A machine's speed drifts by tens of percent within minutes, so times taken at different moments cannot be
compared. Here each pair is measured within seconds, and the result is the ratio within the pair. While one
side computes, the other waits for input and uses no CPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hfaccel.errors import HfaccelError

# Seconds. OpenMP threads spin for some milliseconds after their last work; the next side starts after that.
SETTLE = 0.02
RUN = (sys.executable, "-m", "hfaccel.commands.run")  # hfaccel-run, of this installation
Sample = dict[str, Any]  # "seconds", and whatever else the case measures


@dataclass(frozen=True)
class Side:
    """One side of a comparison: how to start it, and what it measures.

    `case` is `path/to/file.py:function`. The function is called once with `arguments` and returns the
    callable that takes one sample: a number of seconds, or a dict with the key "seconds".
    `launcher` replaces `python` in the command, for example by ("hfaccel-run",).
    """

    name: str
    case: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    launcher: tuple[str, ...] = (sys.executable,)
    environment: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # variables of this process that the side does not inherit

    def command(self) -> list[str]:
        return [*self.launcher, "-m", "hfaccel.bench.worker", self.case, json.dumps(dict(self.arguments))]

    def variables(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name not in self.without}
        return inherited | dict(self.environment)


class Sampled(Protocol):
    """Whatever a sample can be taken of."""

    def sample(self) -> Sample: ...


class Worker:
    """A side's process. `sample()` asks for one sample and waits for the answer."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.process = self._start()
        self.answer()  # the process is ready

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.side.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.side.variables(),
        )

    def sample(self) -> Sample:
        self.ask()
        return self.answer()

    def ask(self) -> None:
        """Ask for a sample; the process computes from now on."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("sample\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def answer(self) -> Sample:
        """Wait for what was asked for."""
        line = self._line()
        if not line:
            raise self._ended()
        answer: Sample = json.loads(line)
        return answer

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def _ended(self) -> HfaccelError:
        return HfaccelError(f"the side {self.side.name} ended with exit code {self.process.wait()}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process ended by itself, and _ended has said so
            self.process.stdin.close()
        self.process.wait()


@dataclass(frozen=True)
class Comparison:
    """Samples of two sides, taken in turn. `ratio`: how many times faster `fast` is, as the median."""

    base: str
    fast: str
    base_samples: tuple[Sample, ...]
    fast_samples: tuple[Sample, ...]

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.base_samples, self.fast_samples, strict=True)
        return [base["seconds"] / fast["seconds"] for base, fast in pairs]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def seconds(self, side: str) -> float:
        samples = self.base_samples if side == self.base else self.fast_samples
        return statistics.median(float(sample["seconds"]) for sample in samples)

    def to_dict(self) -> dict[str, object]:
        return {
            "base": self.base,
            "fast": self.fast,
            "ratio": round(self.ratio, 3),
            "ratios": [round(ratio, 3) for ratio in self.ratios],
            "base_ms": round(self.seconds(self.base) * 1e3, 3),
            "fast_ms": round(self.seconds(self.fast) * 1e3, 3),
        }


def compare(
    base: Side, fast: Side, *, pairs: int = 7, progress: Callable[[], None] = lambda: None
) -> Comparison:
    """Measure both sides in turn, `pairs` times, after one sample of each that does not count."""
    turns = take_turns([base, fast], pairs, progress)
    return Comparison(base.name, fast.name, *(tuple(turn[i] for turn in turns) for i in (0, 1)))


def take_turns(
    sides: Sequence[Side], turns: int, progress: Callable[[], None] = lambda: None
) -> list[list[Sample]]:
    """One sample of each side, `turns` times, after one turn that does not count: [turn][side]."""
    if turns < 1:
        raise ValueError(f"`turns >= 1` must hold, but got {turns}")
    taken: list[list[Sample]] = []
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(side)) for side in sides]
        for number in range(turns + 1):
            turn = take_turn(workers, number)
            if number > 0:
                taken.append(turn)
            progress()
    return taken


def take_turn(workers: Sequence[Sampled], number: int) -> list[Sample]:
    """One sample of each worker, in their order.

    Every turn begins with another worker, so that none always runs on the warmer machine."""
    samples: list[Sample] = [{}] * len(workers)
    for i in range(len(workers)):
        place = (i + number) % len(workers)
        time.sleep(SETTLE)
        samples[place] = workers[place].sample()
    return samples


def load_case(case: str) -> Callable[..., Callable[[], float | Sample]]:
    """The function that `path/to/file.py:function` names."""
    import runpy

    path, _, name = case.rpartition(":")
    if not Path(path).is_file():
        raise HfaccelError(f"a case is path/to/file.py:function, but there is no file {path!r}")
    function: Callable[..., Callable[[], float | Sample]] | None = runpy.run_path(path).get(name)
    if function is None:
        raise HfaccelError(f"a case is path/to/file.py:function, but {path} has no function {name!r}")
    return function

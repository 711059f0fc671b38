"""Engines that take turns on the same work: which there are, their processes, and what their times say."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfaccel.bench import Side, Worker, take_turn
from hfaccel.errors import HfaccelError

CASES = str(Path(__file__).with_name("peers.py"))
PEERS = {  # by precision; eager fp32 is everybody's yardstick
    "fp32": ("openvino", "onnxruntime", "ctranslate2", "inductor", "ipex"),
    "bf16": ("openvino", "ctranslate2", "eager", "inductor", "ipex"),
    "int8": ("openvino", "onnxruntime", "ctranslate2"),
}
ENGINES = sorted({"eager", *(engine for peers in PEERS.values() for engine in peers)})
Turn = dict[str, float]  # seconds of each


def taking_part(precision: str, engines: Sequence[str]) -> list[tuple[str, str]]:
    """Engine and precision of everyone: hfaccel, eager fp32, those of `engines` that have the precision."""
    everyone = [("hfaccel", precision), ("eager", "fp32")]
    return everyone + [(engine, precision) for engine in PEERS[precision] if engine in engines]


def sides(
    precision: str,
    engines: Sequence[str],
    function: str,
    arguments: Mapping[str, Any],
    folder: Path,
    variables: Mapping[str, str],
    interpreter: Callable[[str], str],
) -> list[Side]:
    """A side for everyone who takes part: calls `function` of peers.py, saves its results in `folder`."""
    return [
        Side(
            f"{engine} {kind}",
            f"{CASES}:{function}",
            {"engine": engine, "precision": kind, "output": str(folder / f"{engine}-{kind}"), **arguments},
            (interpreter(engine),),
            variables,
        )
        for engine, kind in taking_part(precision, engines)
    ]


class Engines:
    """Processes that wait for their turn, and why those that could not start did not."""

    def __init__(self, sides: list[Side]) -> None:
        self.workers: dict[str, Worker] = {}
        self.failed: dict[str, str] = {}
        self.facts: dict[str, dict[str, Any]] = {}  # what each told about itself (peers.facts)
        for side in sides:
            print(f"starting {side.name} ...", file=sys.stderr, flush=True)
            try:
                self.workers[side.name] = Worker(side)
            except HfaccelError as error:
                self.failed[side.name] = str(error)

    def round(self, number: int) -> Turn:
        """One sample of each, in seconds; every round starts with another one."""
        samples = dict(zip(self.workers, take_turn(list(self.workers.values()), number), strict=True))
        self.facts = {name: sample["facts"] for name, sample in samples.items()}
        return {name: float(sample["seconds"]) for name, sample in samples.items()}

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.__exit__(None, None, None)


def rounds(running: Engines, cases: Sequence[str], label: str, count: int) -> dict[str, list[Turn]]:
    """The turns of each case that count: one more is taken first."""
    turns: dict[str, list[Turn]] = {case: [] for case in cases}
    for number in range(count + 1):
        for case in cases:
            turns[case].append(running.round(number))
        print(f"{label}: round {number} of {count}", file=sys.stderr, flush=True)
    return {case: taken[1:] for case, taken in turns.items()}


def ratios(turns: Sequence[Turn], base: str) -> dict[str, float]:
    """How many times longer each takes than `base`: the median over the turns."""
    return {name: statistics.median(turn[name] / turn[base] for turn in turns) for name in turns[0]}


def medians(turns: Sequence[Turn]) -> dict[str, float]:
    """Milliseconds of each."""
    return {name: round(statistics.median(turn[name] for turn in turns) * 1e3, 3) for name in turns[0]}

"""Rounds over all ways to run each workload, each in a fresh process, and the results of the rounds."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from hfaccel.bench.memory.addresses import Buffer, layout
from hfaccel.bench.memory.ways import DEFAULT, Way, cleared
from hfaccel.bench.memory.workloads import Workload
from hfaccel.bench.pairs import SETTLE, Sample, Side, Worker
from hfaccel.errors import HfaccelError, UsageError

CASES = str(Path(__file__).with_name("cases.py"))
Document: TypeAlias = dict[str, Any]  # a report, a workload or a result, as written to JSON
Taken = dict[str, list[Sample | None]]  # way -> a sample of each round; None where the process failed


class Setting(NamedTuple):
    """What is measured, and how often."""

    ways: tuple[Way, ...]  # ways that cannot run here are reported and left out
    workloads: tuple[Workload, ...]
    rounds: int


def measure(setting: Setting, progress: Callable[[str], None] = lambda _: None) -> list[Document]:
    """The results of each workload, ready for JSON. Raises UsageError for less than one round.

    Where a process fails, for lack of memory for example, its result has the reason, and the others go on.
    """
    if setting.rounds < 1:
        raise UsageError(f"`rounds >= 1` must hold, but got {setting.rounds}")
    return [_measure_one(workload, setting, progress) for workload in setting.workloads]


def _measure_one(workload: Workload, setting: Setting, progress: Callable[[str], None]) -> Document:
    ways = [way for way in setting.ways if not way.missing]
    taken: Taken = {way.name: [] for way in ways}
    failures: dict[str, str] = {}
    for number in range(setting.rounds):
        for way in rotated(ways, number):
            progress(f"{workload.name}: {way.name}")
            try:
                taken[way.name].append(_sample(way, workload))
            except HfaccelError as error:
                taken[way.name].append(None)
                failures[way.name] = str(error)
    results = [result(way.name, taken, failures.get(way.name, "")) for way in ways]
    return {"name": workload.name, "touched": workload.touched, "kind": workload.kind, "results": results}


def rotated(ways: Sequence[Way], number: int) -> list[Way]:
    """Each round begins with another way, so that none always runs on the warmer machine."""
    start = number % len(ways) if ways else 0
    return [*ways[start:], *ways[:start]]


def side(way: Way, workload: Workload, environment: Mapping[str, str]) -> Side:
    return Side(
        name=f"{way.name} ({workload.name})",
        case=f"{CASES}:{workload.kind}",
        arguments={**workload.arguments, "configure": way.configure, "arena": way.arena},
        launcher=way.launcher,
        environment=way.environment,
        without=cleared(environment),
    )


def _sample(way: Way, workload: Workload) -> Sample:
    with Worker(side(way, workload, os.environ)) as worker:
        time.sleep(SETTLE)
        return worker.sample()


# Results, from samples

MEDIANS = ("first_seconds", "first_faults", "seconds", "faults", "peak", "huge", "process_huge")


def result(way: str, taken: Taken, failure: str = "") -> Document:
    """Medians over the rounds, ratios by round, and the addresses of the first round."""
    samples = [sample for sample in taken[way] if sample is not None]
    if not samples:
        return {"way": way, "failure": failure}
    row: Document = {"way": way, "failure": failure, "rounds": len(samples)}
    row |= {key: _median([sample[key] for sample in samples]) for key in MEDIANS}
    row["events"] = _events(samples)
    for name, key in (("first", "first_seconds"), ("again", "seconds")):
        ratios = paired_ratios(taken.get(DEFAULT, []), taken[way], key)
        row[f"{name}_ratios"] = [round(ratio, 4) for ratio in ratios]
        row[f"{name}_ratio"] = _median(ratios)
    chosen = samples[0]
    row |= {key: chosen[key] for key in ("allocator", "threads", "uncounted", "unread", "source", "buffers")}
    row["layout"] = layout(Buffer(*buffer) for buffer in chosen["buffers"])
    return row


def paired_ratios(base: Sequence[Sample | None], other: Sequence[Sample | None], key: str) -> list[float]:
    """How many times faster `other` was, round by round; rounds in which either failed do not count."""
    pairs = zip(base, other, strict=False)
    return [a[key] / b[key] for a, b in pairs if a is not None and b is not None]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _events(samples: Sequence[Sample]) -> dict[str, float | None]:
    names = sorted(set().union(*(sample["events"] for sample in samples)))
    return {name: _median([sample["events"].get(name) for sample in samples]) for name in names}

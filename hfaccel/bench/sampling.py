"""Taking samples of a task: calls until it is warm, then as many as fit into a sample. Imports no torch."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hfaccel.bench.answers import Array
from hfaccel.bench.pairs import Sample
from hfaccel.bench.statistics import is_warm

WARM_UP = 10  # times as long as a sample, at most
Figures = dict[str, float]


class Task(NamedTuple):
    """A kind of work that is ready to be done again and again."""

    call: Callable[[], Figures]  # does the work once; what it times inside
    answers: Callable[[], Array] | None = None  # what all sides must agree on
    facts: dict[str, int] = {}  # of the work
    flops: Callable[[], float] | None = None
    least_calls: int = 1  # in one sample
    at_once: int = 1  # how many times a call does the work
    who: int = resource.RUSAGE_SELF  # whose page faults and memory count


def warm_up(task: Task, seconds: float) -> dict[str, object]:
    """Call until calls get no faster."""
    times: list[float] = []
    while not is_warm(times) and (not times or sum(times) < WARM_UP * seconds):
        start = time.perf_counter()
        task.call()
        times.append(time.perf_counter() - start)
    return {"calls": len(times), "ended": is_warm(times) or len(times) < 6}


def sample(task: Task, seconds: float) -> Sample:
    """As many calls as fit into `seconds`; the median counts."""
    times: list[float] = []
    figures: list[Figures] = []
    before = _faults(task)
    while len(times) < task.least_calls or sum(times) < seconds:
        start = time.perf_counter()
        figures.append(task.call())
        times.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(times) / task.at_once,
        "calls": times,
        "page_faults": (_faults(task) - before) / len(times),
        "peak_memory_mib": _peak_mib(task),
        "threads": None,
        **{name: [one[name] for one in figures] for name in figures[0]},
    }


def _faults(task: Task) -> int:
    return resource.getrusage(task.who).ru_minflt


def _peak_mib(task: Task) -> float | None:
    if task.who != resource.RUSAGE_SELF:
        return resource.getrusage(task.who).ru_maxrss / 1024
    # Not ru_maxrss, which survives the exec of hfaccel-run.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)

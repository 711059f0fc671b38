"""What the processes of a study run: hfaccel.bench.worker calls these functions."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfaccel.backends import by_name
from hfaccel.bench import subjects
from hfaccel.bench.pairs import Sample
from hfaccel.bench.setting import STOCK, Setting
from hfaccel.bench.statistics import is_warm
from hfaccel.bench.tasks import Task, make
from hfaccel.bench.work import Generation, work_of
from hfaccel.errors import HfaccelError

WARM_UP = 10  # times as long as a sample, at most


def describe(subject: str, backends: Sequence[str]) -> Callable[[], Sample]:
    """What the study has to know of the model, and why backends cannot run here."""
    problems = {name: by_name(name).available() for name in backends}
    config = subjects.config_of(subject) if subject else None
    found: Sample = {"seconds": 0.0, "backends": problems}
    if config is not None:
        found |= {
            "kind": subjects.kind_of(config),
            "longest": subjects.longest_of(config),
            "weights_mib": subjects.weights_mib(config),
        }
    return lambda: found


def measure(
    subject: str,
    setting: Mapping[str, object],
    work: Mapping[str, object],
    output: str,
    seconds: float,
) -> Callable[[], Sample]:
    """The sampler of one side. The results are saved as `output`, an array of NumPy."""
    chosen, what = Setting.from_dict(setting), work_of(work)
    if chosen.interop_threads is not None:
        torch.set_num_interop_threads(chosen.interop_threads)
    try:
        task = make(subject, chosen, what)
    except HfaccelError as error:
        reason = str(error)
        return lambda: {"seconds": 0.0, "skipped": reason}
    if task.own_process:
        np.save(output, task.answers())
    facts: Sample = {"facts": task.facts, "flops": _flops(task, chosen), "warm_up": _warm_up(task, seconds)}
    return lambda: {**_sample(task, seconds), **facts}


def _flops(task: Task, setting: Setting) -> float | None:
    stock = setting.backend == STOCK and setting.precision == "fp32"
    return task.flops() if task.flops is not None and stock else None


def _warm_up(task: Task, seconds: float) -> dict[str, object]:
    """Call until calls get no faster."""
    times: list[float] = []
    while not is_warm(times) and (not times or sum(times) < WARM_UP * seconds):
        start = time.perf_counter()
        task.call()
        times.append(time.perf_counter() - start)
    return {"calls": len(times), "ended": is_warm(times) or len(times) < 6}


def _sample(task: Task, seconds: float) -> Sample:
    """As many calls as fit into `seconds`; the median counts."""
    times: list[float] = []
    figures: list[dict[str, float]] = []
    before = _faults(task)
    while len(times) < task.least_calls or sum(times) < seconds:
        start = time.perf_counter()
        figures.append(task.call())
        times.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(times),
        "calls": times,
        "page_faults": (_faults(task) - before) / len(times),
        "peak_memory_mib": _peak_mib(task),
        "threads": torch.get_num_threads() if task.own_process else None,
        **{name: [one[name] for one in figures] for name in figures[0]},
    }


def _faults(task: Task) -> int:
    return resource.getrusage(_who(task)).ru_minflt


def _who(task: Task) -> int:
    return resource.RUSAGE_SELF if task.own_process else resource.RUSAGE_CHILDREN


def _peak_mib(task: Task) -> float | None:
    if not task.own_process:
        return resource.getrusage(_who(task)).ru_maxrss / 1024
    # Not ru_maxrss, which survives the exec of hfaccel-run.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def judge(subject: str, work: Mapping[str, object], files: Mapping[str, str]) -> Callable[[], Sample]:
    """The regret of the generated tokens in `files` (name -> path), read by the stock model."""
    what = work_of(work)
    assert isinstance(what, Generation)
    model = subjects.load(subject)
    prompt = subjects.tokens(model.config, what.batch, what.prompt)

    def sample() -> Sample:
        regrets: dict[str, Any] = {}
        for name, path in files.items():
            generated = torch.from_numpy(np.load(path))
            regrets[name] = subjects.regret(model, prompt, generated, what)
        return {"seconds": 0.0, "regrets": regrets}

    return sample

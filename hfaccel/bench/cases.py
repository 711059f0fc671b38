"""What the processes of a study run: hfaccel.bench.worker calls these functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hfaccel.backends import by_name
from hfaccel.bench import subjects
from hfaccel.bench.pairs import Sample
from hfaccel.bench.sampling import Task, sample, warm_up
from hfaccel.bench.setting import STOCK, Setting
from hfaccel.bench.tasks import make
from hfaccel.bench.work import Generation, work_of
from hfaccel.errors import HfaccelError


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
    if task.answers is not None:
        np.save(output, task.answers())
    facts: Sample = {"facts": task.facts, "flops": _flops(task, chosen), "warm_up": warm_up(task, seconds)}
    return lambda: {**sample(task, seconds), "threads": torch.get_num_threads(), **facts}


def _flops(task: Task, setting: Setting) -> float | None:
    stock = setting.backend == STOCK and setting.precision == "fp32"
    return task.flops() if task.flops is not None and stock else None


def judge(subject: str, work: Mapping[str, object], files: Mapping[str, str]) -> Callable[[], Sample]:
    """The regret of the generated tokens in `files` (name -> path), read by the stock model."""
    what = work_of(work)
    assert isinstance(what, Generation)
    model = subjects.load(subject)
    prompt = subjects.tokens(model.config, what.batch, what.prompt)

    def judged() -> Sample:
        regrets: dict[str, Any] = {}
        for name, path in files.items():
            generated = torch.from_numpy(np.load(path))
            regrets[name] = subjects.regret(model, prompt, generated, what)
        return {"seconds": 0.0, "regrets": regrets}

    return judged

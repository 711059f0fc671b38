"""Whole runs of a script, as children of a process that loads nothing itself.

A child's peak of memory begins with that of the process that started it, so this file imports no torch.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping

from hfaccel.bench.pairs import RUN, Sample
from hfaccel.bench.sampling import Figures, Task, sample, warm_up
from hfaccel.bench.setting import STOCK, Setting
from hfaccel.bench.work import Script, work_of
from hfaccel.bench.workers import last_line
from hfaccel.errors import HfaccelError


def measure(
    setting: Mapping[str, object], work: Mapping[str, object], seconds: float
) -> Callable[[], Sample]:
    """The sampler of one side."""
    chosen, what = Setting.from_dict(setting), work_of(work)
    assert isinstance(what, Script)
    command = command_of(chosen, what)
    task = Task(lambda: run(command), at_once=chosen.instances, who=resource.RUSAGE_CHILDREN)
    facts: Sample = {"facts": {}, "flops": None, "warm_up": warm_up(task, seconds)}
    return lambda: {**sample(task, seconds), **facts}


def command_of(setting: Setting, work: Script) -> list[str]:
    """The stock program is started by plain python; hfaccel's is optimized as it loads its models."""
    if setting.backend == STOCK and not setting.launched:
        return [sys.executable, *work.command]
    options = list(setting.launcher_options(None)) or ["--memory-allocator", "default", "--huge-pages", "off"]
    options += ["--optimize"] * (setting.backend != STOCK)
    return [*RUN, *options, *work.command]


def run(command: list[str]) -> Figures:
    """One run, without input, its output thrown away. Raises HfaccelError where it fails."""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        errors.seek(0)
        said = last_line(errors.read()) if done.returncode else ""
    if done.returncode:
        raise HfaccelError(f"the script ended with exit code {done.returncode}: {said}")
    return {}

"""Settings on this machine: a user's script, run from its start to its end under hfaccel-run.

What the script reports counts, otherwise its run time. A run ends with its whole process group.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from hfaccel.bench.pairs import Sample
from hfaccel.bench.setting import Setting
from hfaccel.bench.workers import last_line
from hfaccel.errors import HfaccelError
from hfaccel.plan.profile import write_profile
from hfaccel.tune.machines import launcher, profile_of
from hfaccel.tune.objective import Objective
from hfaccel.tune.reporting import FILE, read_reports
from hfaccel.tune.trials import TrialFailed


@dataclass
class ScriptMachine:
    command: tuple[str, ...]  # the script and its arguments
    objective: Objective
    folder: Path
    limit: float  # seconds of a run
    without: tuple[str, ...] = ()  # variables that no run inherits
    optimize: bool = False  # the models that the script loads
    items: int = 1
    reports: bool | None = None  # whether the runs so far have reported; None: there was none
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def open(self, setting: Setting) -> Iterator[ScriptRunner]:
        profile = self.folder / f"script{next(self._numbers)}.toml"
        profile.write_text(write_profile(profile_of(setting)), encoding="utf-8")
        yield ScriptRunner(self, setting, profile)

    def sample(self, setting: Setting, profile: Path) -> Sample:
        file = profile.with_suffix(".reports")
        file.unlink(missing_ok=True)
        seconds = self._run(profile, file)
        if self.objective.kind == "throughput":  # runs a second, of all instances together
            return {"seconds": seconds / setting.instances, "calls": [seconds]}
        value = self._reported(file)
        return {"seconds": seconds if value is None else value, "calls": [seconds]}

    def _reported(self, file: Path) -> float | None:
        try:
            values = read_reports(file)
        except HfaccelError as error:
            raise TrialFailed(str(error)) from None
        if self.objective.maximize and not values:
            raise TrialFailed(
                "a script must report what is to be maximized, but hfaccel.tune.report was not called"
            )
        if self.reports is None:
            self.reports = bool(values)
        if self.reports != bool(values):
            told = ("did not report", "reported") if self.reports else ("reported", "had not")
            raise TrialFailed(
                f"a script must report in every run or in none, but it {told[0]} and others {told[1]}"
            )
        return sum(values) / len(values) if values else None

    def _run(self, profile: Path, file: Path) -> float:
        environment = {name: value for name, value in os.environ.items() if name not in self.without}
        optimize = ("--optimize",) if self.optimize else ()
        with tempfile.TemporaryFile() as said:
            start = time.monotonic()
            code = self._wait(
                [*launcher(profile, None), *optimize, *self.command], {**environment, FILE: str(file)}, said
            )
            seconds = time.monotonic() - start
            if code != 0:
                said.seek(0)
                words = last_line(said.read().decode(errors="replace"))
                raise TrialFailed(f"{_ending(code)}{': ' if words else ''}{words}")
        return seconds

    def _wait(self, command: list[str], environment: Mapping[str, str], said: IO[bytes]) -> int:
        """The exit code. The process group ends with the run, also on Ctrl-C."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=environment,
            process_group=0,
        )
        try:
            return process.wait(self.limit)
        except subprocess.TimeoutExpired:
            raise TrialFailed(f"it ran longer than {self.limit:g} seconds and was ended") from None
        finally:
            with contextlib.suppress(ProcessLookupError):  # the whole group has ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass(frozen=True)
class ScriptRunner:
    machine: ScriptMachine
    setting: Setting
    profile: Path

    def sample(self) -> Sample:
        return self.machine.sample(self.setting, self.profile)


def _ending(code: int) -> str:
    return f"it ended with exit code {code}" if code > 0 else f"it was ended by signal {-code}"

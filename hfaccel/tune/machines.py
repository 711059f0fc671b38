"""Settings on this machine: a model in fresh processes under hfaccel-run, each with a trial's profile.

What is measured is what `hfaccel-run --profile` does later, with the same file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from hfaccel.bench import answers, side
from hfaccel.bench.judging import verdicts
from hfaccel.bench.pairs import RUN, Sample, Side
from hfaccel.bench.setting import OF_THE_LAUNCHER, STOCK, Setting
from hfaccel.bench.side import Ground
from hfaccel.bench.work import Work
from hfaccel.bench.workers import Crew, Limits
from hfaccel.errors import HfaccelError
from hfaccel.plan.profile import Profile, write_profile
from hfaccel.tune.trials import TrialFailed

NO_LIMITS = Limits()


def profile_of(setting: Setting) -> Profile:
    """What hfaccel-run needs to know of a setting: of its own knobs also the stock program's values, which
    the rules would replace."""
    knobs = setting.knobs() | {name: getattr(setting, name) for name in OF_THE_LAUNCHER}
    instances = {"count": setting.instances, "cores": setting.threads} if setting.instances > 1 else {}
    return Profile(knobs, instances)


def launcher(profile: Path, instance: int | None) -> tuple[str, ...]:
    chosen = () if instance is None else ("--instance-idx", str(instance))
    return (*RUN, "--profile", str(profile), *chosen)


@dataclass
class ModelMachine:
    """Each trial has processes of its own, one for each instance. `default`: whose results all must have."""

    ground: Ground
    work: Work
    default: Setting
    limits: Limits = NO_LIMITS
    unverified: str = ""  # why results could not be compared
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _verdicts: dict[tuple[str, str], str] = field(
        default_factory=dict
    )  # engine -> what is wrong with results
    _reference: str = ""  # the name of the side that has left its results

    @property
    def items(self) -> int:
        return self.work.items

    @contextmanager
    def open(self, setting: Setting) -> Iterator[ModelRunner]:
        name = self._name()
        with self._crew(setting, name) as crew:
            self._verify(setting, name)
            yield ModelRunner(crew, setting.threads)

    def _name(self) -> str:
        return f"side{next(self._numbers)}"

    @contextmanager
    def _crew(self, setting: Setting, name: str) -> Iterator[Crew]:
        with Crew(self._sides(setting, name), self.limits) as crew:
            check(crew)
            yield crew

    def _sides(self, setting: Setting, name: str) -> tuple[Side, ...]:
        profile = Path(self.ground.folder, f"{name}.toml")
        profile.write_text(write_profile(profile_of(setting)), encoding="utf-8")
        several = setting.instances > 1
        return tuple(
            replace(one, launcher=launcher(profile, number if several else None), environment={})
            for number, one in enumerate(side.sides(self.ground, self.work, setting, name))
        )

    # Results: the default's, by which those of other backends and precisions are judged

    def _verify(self, setting: Setting, name: str) -> None:
        """Raise TrialFailed where its engine's results are wrong. Each engine is asked once."""
        engine = (setting.backend, setting.precision)
        if engine == (self.default.backend, self.default.precision):
            self._reference = self._reference or name
            return
        if engine not in self._verdicts:
            self._verdicts[engine] = self._compare(setting, name)
        if self._verdicts[engine]:
            raise TrialFailed(self._verdicts[engine])

    def _compare(self, setting: Setting, name: str) -> str:
        try:
            if not self._reference:
                reference = self._name()
                with self._crew(self.default, reference):
                    self._reference = reference
            return self._judge(setting, name).problem
        except TrialFailed as error:
            self.unverified = f"results could not be compared with the default's: {error}"
            return ""

    def _judge(self, setting: Setting, name: str) -> answers.Verdict:
        others = {name: setting.precision}
        try:
            return verdicts(self.ground, self.work, self._reference, others, self.limits)[name]
        except HfaccelError as error:
            raise TrialFailed(str(error)) from None


class ModelRunner:
    def __init__(self, crew: Crew, threads: int | None) -> None:
        self.crew, self.threads = crew, threads

    def sample(self) -> Sample:
        sample = self.crew.sample()
        check(self.crew)
        if sample["threads"] not in (None, self.threads):
            raise TrialFailed(f"it must have {self.threads} threads, but has {sample['threads']}")
        return sample


def check(crew: Crew) -> None:
    """Raise TrialFailed where its processes have ended or cannot do the work."""
    if not crew.alive:
        raise TrialFailed(crew.failure or crew.skipped)


def arguments_of(setting: Setting) -> str:
    """How a program asks for the setting's backend and precision; "" for plain transformers."""
    if setting.backend == STOCK:
        return ""
    given = {
        name: repr(value) for name, value in setting.optimize_arguments().items() if name != "huge_pages"
    }
    if "dtype" in given:
        given["dtype"] = f"torch.{setting.optimize_arguments()['dtype']}"
    return f"hfaccel.optimize(model, {', '.join(f'{name}={value}' for name, value in given.items())})"

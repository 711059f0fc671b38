"""From a work and a setting to processes: how each is started, and what it runs. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hfaccel.bench.memory import ways
from hfaccel.bench.pairs import RUN, Side
from hfaccel.bench.setting import Setting
from hfaccel.bench.work import Generation, Script, Work, describe

HERE = Path(__file__)
CASES, SCRIPTS, LIMITS = (str(HERE.with_name(name)) for name in ("cases.py", "scripts.py", "limits.py"))
# What a user has set for the own programs would make sides alike, or different in other respects.
CLEARED = (*ways.CLEARED, "MKL_NUM_THREADS")
KEPT = ("HFACCEL_CACHE", "HFACCEL_MAX_ISA")  # where exports lie, and a limit that is meant for all sides


@dataclass(frozen=True)
class Ground:
    """What all sides of a study have in common."""

    subject: str  # "" for scripts
    threads: int  # of a side that asks for no number: the cores that can be used
    seconds: float  # of calls in one sample
    folder: str  # for results
    without: tuple[str, ...] = ()  # variables that no side inherits


def cleared(environment: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in environment if name.startswith(CLEARED) and name not in KEPT))


def sides(ground: Ground, work: Work, setting: Setting, name: str) -> tuple[Side, ...]:
    """One for each instance. A script starts its instances itself."""
    if isinstance(work, Script):
        return (_script(ground, work, setting, name),)
    return tuple(
        _side(ground, work, setting, name, launcher(setting, instance), _output(ground, name, instance))
        for instance in range(setting.instances)
    )


def launcher(setting: Setting, instance: int) -> tuple[str, ...]:
    if not setting.launched:
        return (sys.executable,)
    return (*RUN, *setting.launcher_options(instance))


def environment(ground: Ground, setting: Setting) -> dict[str, str]:
    """Every side gets its number of threads; where there are instances, hfaccel-run divides the cores."""
    if setting.threads is not None or setting.instances > 1:
        return setting.environment()
    return {
        "OMP_NUM_THREADS": str(ground.threads),
        "MKL_NUM_THREADS": str(ground.threads),
        **setting.environment(),
    }


def threads_wanted(ground: Ground, setting: Setting) -> int | None:
    """How many threads each process of the side must have; None where hfaccel-run divides the cores."""
    if setting.threads is not None:
        return setting.threads
    return ground.threads if setting.instances == 1 else None


def output(ground: Ground, name: str) -> str:
    """Where the first instance leaves its results."""
    return _output(ground, name, 0)


def judge(ground: Ground, work: Generation, files: Mapping[str, str]) -> Side:
    """The stock model reads what the sides have generated."""
    arguments = {"subject": ground.subject, "work": describe(work), "files": dict(files)}
    return Side("judge", f"{CASES}:judge", arguments, environment=_threads(ground), without=ground.without)


def describing(ground: Ground, backends: Iterable[str]) -> Side:
    arguments = {"subject": ground.subject, "backends": list(backends)}
    return Side("describe", f"{CASES}:describe", arguments, without=ground.without)


def limits(ground: Ground) -> Side:
    """The one sample of this side has the limits of the machine."""
    return Side("limits", f"{LIMITS}:measure", environment=_threads(ground), without=ground.without)


def _script(ground: Ground, work: Script, setting: Setting, name: str) -> Side:
    arguments = {"setting": setting.to_dict(), "work": describe(work), "seconds": ground.seconds}
    variables = environment(ground, setting)
    return Side(name, f"{SCRIPTS}:measure", arguments, environment=variables, without=ground.without)


def _threads(ground: Ground) -> dict[str, str]:
    return environment(ground, Setting())


def _output(ground: Ground, name: str, instance: int) -> str:
    return str(Path(ground.folder, f"{name}-{instance}.npy"))


def _side(
    ground: Ground, work: Work, setting: Setting, name: str, start: tuple[str, ...], results: str
) -> Side:
    arguments = {
        "subject": ground.subject,
        "setting": setting.to_dict(),
        "work": describe(work),
        "output": results,
        "seconds": ground.seconds,
    }
    return Side(name, f"{CASES}:measure", arguments, start, environment(ground, setting), ground.without)

"""What a probe is: one private part of another package, where it is, what it is for, and how to check it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from importlib import import_module
from operator import attrgetter
from typing import Any, NoReturn

from hfaccel.errors import HfaccelError
from hfaccel.outcome import Outcome
from hfaccel.upstream.versions import TESTED, installed


class Need(Enum):
    """What needs a part. The value says what is done without."""

    ENGINE = "weights are not packed"
    LAYERS = "layers are not fused"
    EXPERTS = "the weights of experts are not packed"
    CACHES = "decoder layers with a cache are not fused"
    CONVOLUTIONS = "convolutions are not prepared"
    COLLECTING = "layers run as stock once hidden states were asked for"
    EXPORT = "other engines are not used"
    PIPELINES = "transformers' own loop runs"
    SAVING = "models are not saved, nor loaded without their checkpoint"
    AUTO = "hfaccel.auto leaves what is loaded as it is"


PROBES: list[Probe] = []


@dataclass(eq=False)
class Probe:
    """`name`: dotted, of an attribute of `module`. `agrees`: whether what is found there is as expected; an
    exception says no. `after`: the module with whose import the part begins to matter."""

    module: str
    name: str
    meaning: str
    needs: tuple[Need, ...]
    agrees: Callable[[Any], object]
    after: str = "torch"

    def __post_init__(self) -> None:
        PROBES.append(self)

    @property
    def place(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def package(self) -> str:
        return self.after.partition(".")[0]

    @property
    def is_due(self) -> bool:
        return self.after in sys.modules

    def owner(self) -> object:
        return import_module(self.module)

    def look_up(self) -> object:
        return attrgetter(self.name)(self.owner())

    def value(self, default: object = None) -> Any:
        """The part, or `default` where the probe fails."""
        return default if self.problem else self._looked[0]

    def function(self) -> Callable[..., Any]:
        """The part, which is called. Where the probe fails a call raises HfaccelError."""
        found: Callable[..., Any] = self.value(self._fail)
        return found

    def current(self) -> Callable[[], Any]:
        """A function that reads a part whose value changes."""
        name = attrgetter(self.name)
        owner = None if self.problem else self.owner()
        return self._fail if owner is None else lambda: name(owner)

    @property
    def problem(self) -> str:
        """How the part differs from what is expected; "" where it does not."""
        return self._looked[1]

    @cached_property
    def _looked(self) -> tuple[object, str]:
        try:
            found = self.look_up()
            detail = "" if self.agrees(found) else f"got a {type(found).__name__}"
        except Exception as error:  # noqa: BLE001 - whatever has become of the part, it is no longer the part
            found, detail = None, f"{type(error).__name__}: {error}"
        return found, detail and f"{self.place} is not as expected ({detail}); {_versions(self.package)}"

    def _fail(self, *arguments: object, **keywords: object) -> NoReturn:
        raise HfaccelError(self.problem)


def _versions(package: str) -> str:
    tested = next(versions for versions in TESTED if versions.package == package)
    return f"this is {package} {installed(package) or 'of no known version'}, tested with {tested}"


def problem(*needs: Need) -> str:
    """Why a part that one of these needs is missing; "" where all are there. Parts of a package that the
    program has not imported do not matter yet."""
    due = (probe for probe in PROBES if probe.is_due and not set(needs).isdisjoint(probe.needs))
    return next((probe.problem for probe in due if probe.problem), "")


def outcomes() -> tuple[Outcome, ...]:
    """A line of a report for each part that matters and is not as expected."""
    failed = [probe for probe in PROBES if probe.is_due and probe.problem]
    return tuple(
        Outcome(probe.package, False, f"{'; '.join(need.value for need in probe.needs)}: {probe.problem}")
        for probe in failed
    )

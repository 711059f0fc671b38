"""The versions of torch and transformers that hfaccel was tested with. A newer one is probed, not refused."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple


class Versions(NamedTuple):
    """From the first to the last minor version."""

    package: str
    first: tuple[int, int]
    last: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.first[0]}.{self.first[1]} to {self.last[0]}.{self.last[1]}"

    def include(self, version: str) -> bool:
        found = re.match(r"(\d+)\.(\d+)", version)
        return found is not None and self.first <= (int(found[1]), int(found[2])) <= self.last


TESTED = (Versions("torch", (2, 10), (2, 13)), Versions("transformers", (5, 0), (5, 23)))


def installed(package: str) -> str:
    """The installed version; "" where the package is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def untested() -> tuple[str, ...]:
    """What to say of each package of which another version is installed."""
    return tuple(
        f"{package} {here} (tested: {versions})"
        for versions in TESTED
        if (here := installed(package := versions.package)) and not versions.include(here)
    )

"""The ways to run a workload: plain, with torch's own switch, each allocator, tuned glibc, hfaccel."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from hfaccel import native
from hfaccel.apply.preload import preload_trial
from hfaccel.bench.pairs import RUN
from hfaccel.errors import UsageError
from hfaccel.host import ALLOCATORS, HostFacts

DEFAULT = "default"  # the base of all ratios

# A user's variables with these beginnings would make the ways alike, or different in other respects.
CLEARED = (
    "LD_PRELOAD",
    "GLIBC_TUNABLES",
    "MALLOC_",
    "MIMALLOC_",
    "TCMALLOC_",
    "THP_MEM_ALLOC_ENABLE",
    "OMP_",
    "GOMP_",
    "KMP_",
    "HFACCEL_",
)


class Way(NamedTuple):
    """How the processes of one configuration start, and what they do before the workload."""

    name: str
    meaning: str
    environment: Mapping[str, str] = MappingProxyType({})
    launcher: tuple[str, ...] = (sys.executable,)
    configure: bool = False  # call hfaccel.configure() first
    arena: bool = False  # put the buffers, or the weights, into arenas on huge pages
    missing: str = ""  # why this way cannot run here

    def to_dict(self) -> dict[str, object]:
        return {**self._asdict(), "environment": dict(self.environment)}


def find_ways(facts: HostFacts, threads: int, trial: Callable[[str], str] = preload_trial) -> tuple[Way, ...]:
    """All ways, in the order of the tables; `missing` has the reason why a way cannot run on this host."""
    return (
        Way(DEFAULT, "plain python, glibc's or whatever malloc there is"),
        Way("torch-thp", "torch's own switch for huge pages", {"THP_MEM_ALLOC_ENABLE": "1"}),
        *(_preloaded(kind, facts, trial) for kind in ALLOCATORS),
        Way(
            "glibc-tuned", "hfaccel.configure() inside the program", configure=True, missing=_untunable(facts)
        ),
        Way(
            "hfaccel",
            "hfaccel-run, and an arena on huge pages for the buffers or weights",
            launcher=(*RUN, "--threads", str(threads)),
            arena=True,
        ),
    )


def _preloaded(kind: str, facts: HostFacts, trial: Callable[[str], str]) -> Way:
    path = next((library.path for library in facts.allocators if library.kind == kind), None)
    meaning = "preloaded, without settings"
    if path is None:
        return Way(kind, meaning, missing=f"not found ({', '.join(ALLOCATORS[kind])})")
    problem = trial(path)
    return Way(kind, meaning, {"LD_PRELOAD": path}, missing=f"{path} {problem}" if problem else "")


def _untunable(facts: HostFacts) -> str:
    return native.MISSING if facts.libc == "glibc" else f"the libc is {facts.libc}"


def select(ways: Iterable[Way], names: Iterable[str]) -> tuple[Way, ...]:
    """The named ways and the default, which the ratios need; all ways where none is named.

    Raises UsageError for an unknown way and for a way that cannot run here.
    """
    wanted, known = set(names), {way.name: way for way in ways}
    for name in sorted(wanted):
        if name not in known:
            raise UsageError(f"a configuration must be one of {', '.join(known)}, but got {name!r}")
        if known[name].missing:
            raise UsageError(f"a configuration must be there, but {name} is not: {known[name].missing}")
    return tuple(way for way in known.values() if not wanted or way.name in wanted | {DEFAULT})


def cleared(environment: Iterable[str]) -> tuple[str, ...]:
    """The variables that no side inherits."""
    return tuple(sorted(name for name in environment if name.startswith(CLEARED)))

"""The facts about a host, as plain frozen data. Nothing here decides, nothing here reads.

Named tuples and not dataclasses: importing `dataclasses` and making a dozen of them takes a third of the
time in which hfaccel-run starts.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

ThpMode = Literal["always", "madvise", "never", "absent"]


class Processor(NamedTuple):
    """What kind of CPU this is, as the kernel shows it."""

    vendor: str  # "AuthenticAMD", "GenuineIntel"; "" where unknown
    model_name: str
    isa: tuple[str, ...]  # of ISA_FLAGS, those that the kernel lists for CPU 0

    def has(self, flag: str) -> bool:
        return flag in self.isa


class LogicalCpu(NamedTuple):
    """One CPU as the scheduler counts them.

    `cpu` is the number that affinity masks use. `core` and `package` are ids that repeat between
    sockets and say nothing to the scheduler: the pair names a physical core.
    """

    cpu: int
    core: int
    package: int
    node: int


class Topology(NamedTuple):
    cpus: tuple[LogicalCpu, ...]  # online, ascending by CPU number

    def one_per_core(self, mask: tuple[int, ...]) -> tuple[int, ...]:
        """The first CPU in `mask` of every physical core that the mask touches, ascending."""
        first: dict[tuple[int, int], int] = {}
        known = {entry.cpu: entry for entry in self.cpus}
        for cpu in sorted(mask):
            entry = known.get(cpu)
            # A CPU without topology counts as a core of its own.
            key = (entry.package, entry.core) if entry else (-1, cpu)
            first.setdefault(key, cpu)
        return tuple(sorted(first.values()))


class Limits(NamedTuple):
    """What the container and the process may use."""

    affinity: tuple[int, ...]  # CPU numbers
    cpu_quota: float | None  # CPUs' worth of time; None: unlimited
    memory_limit: int | None  # bytes, of the cgroup; None: unlimited


class MemoryFacts(NamedTuple):
    total: int  # bytes of RAM; 0 where unknown
    thp: ThpMode
    thp_defrag: str
    thp_disabled: bool  # for this process, by prctl(PR_SET_THP_DISABLE)


class Library(NamedTuple):
    """A shared library that can be preloaded."""

    kind: str  # a name of ALLOCATORS
    path: str


class HostFacts(NamedTuple):
    processor: Processor
    topology: Topology
    limits: Limits
    memory: MemoryFacts
    allocators: tuple[Library, ...]  # on disk, usable, in order of preference
    libc: str  # "glibc", "musl" or "unknown"
    mapped: tuple[str, ...]  # shared libraries loaded into this process
    problems: tuple[str, ...]  # what could not be read, one line each

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = to_data(self)
        return data


def to_data(value: Any) -> Any:
    """Facts and choices as dicts and lists, for JSON."""
    if hasattr(value, "_asdict"):
        return {name: to_data(item) for name, item in value._asdict().items()}
    return [to_data(item) for item in value] if isinstance(value, tuple) else value

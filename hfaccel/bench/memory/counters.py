"""What a piece of work costs this process: seconds, minor page faults, dTLB misses; and peak memory."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hfaccel import native
from hfaccel.host import Tree

# linux/perf_event.h: PERF_TYPE_HW_CACHE, and the dTLB (3) | operation << 8 | misses (1) << 16.
HW_CACHE, DTLB, READ, WRITE = 3, 3, 0, 1
EVENTS = {
    "dtlb_load_misses": (HW_CACHE, DTLB | READ << 8 | 1 << 16),
    "dtlb_store_misses": (HW_CACHE, DTLB | WRITE << 8 | 1 << 16),
}


@dataclass
class Cost:
    """`events`: name -> count in user space, for the events that this machine counts."""

    seconds: float = 0.0
    faults: int = 0
    events: dict[str, int] = field(default_factory=dict)


class Counters:
    """Counts for this thread and threads started later, so make it before any other thread starts.

    `problems`: event -> why it cannot be counted.
    """

    def __init__(self, events: Mapping[str, tuple[int, int]] = EVENTS) -> None:
        self.files: dict[str, int] = {}
        self.problems: dict[str, str] = {}
        for name, (kind, config) in events.items():
            try:
                self.files[name] = _open(kind, config)
            except OSError as error:
                self.problems[name] = str(error.args[-1])

    @contextlib.contextmanager
    def count(self, cost: Cost) -> Iterator[None]:
        """Add what the body costs to `cost`."""
        events, faults = self._read(), minor_faults()
        start = time.perf_counter()
        yield
        cost.seconds += time.perf_counter() - start
        cost.faults += minor_faults() - faults
        for name, after in self._read().items():
            counted = scaled(events[name], after)
            if counted is None:
                self.problems[name] = "others have taken the processor's counters"
            else:
                cost.events[name] = cost.events.get(name, 0) + counted

    def _read(self) -> dict[str, tuple[int, int, int]]:
        return {name: struct.unpack("QQQ", os.read(file, 24)) for name, file in self.files.items()}

    def close(self) -> None:
        while self.files:
            os.close(self.files.popitem()[1])


def _open(kind: int, config: int) -> int:
    if native.arena is None:
        raise OSError(0, native.MISSING)
    file = native.arena.count_event(kind, config)
    os.set_inheritable(file, False)  # programs that this process starts have no use for it
    return file


def scaled(before: tuple[int, int, int], after: tuple[int, int, int]) -> int | None:
    """Events between two readings (count, time enabled, time running).

    Events take turns where the processor has too few counters for all; the count is extrapolated to the whole
    time. None where the event never had its turn.
    """
    count, enabled, running = (end - start for start, end in zip(before, after, strict=True))
    if running == 0:
        return None if enabled else 0
    return round(count * enabled / running)


def minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def memory(field: str) -> int | None:
    """VmHWM (peak) or VmRSS of this process in bytes; None where /proc does not say.

    ru_maxrss does not serve: after an exec it begins with the parent's memory.
    """
    kilobytes = Tree().number_after("/proc/self/status", f"{field}:")
    return None if kilobytes is None else kilobytes * 1024

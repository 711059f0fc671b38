"""What else happened on the machine while a cell was measured: steal, throttling, load of other programs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import NamedTuple

from hfaccel.host import Tree, is_number, read_throttled_ms

STEAL, LOAD = 0.01, 0.3  # beyond these, a note: share of the CPU time, and CPUs
MUCH = 0.05  # of steal: no difference is claimed
TICK = os.sysconf("SC_CLK_TCK")


class Snapshot(NamedTuple):
    """Counters that grow. None: not counted here."""

    moment: float  # seconds
    busy: float | None  # CPU seconds of all programs
    stolen: float | None  # CPU seconds that the hypervisor gave to other machines
    total: float | None  # CPU seconds in all, with idle ones
    own: float  # CPU seconds of the study's processes
    throttled_ms: float | None


class Conditions(NamedTuple):
    """Between two snapshots."""

    steal: float | None  # share
    throttled_ms: float | None
    load_of_others: float | None  # CPUs

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures should know."""
        notes = []
        if self.steal is not None and self.steal > STEAL:
            notes.append(f"the hypervisor took {self.steal:.0%} of the CPU time")
        if self.throttled_ms:
            notes.append(f"the CPU quota stopped the group for {self.throttled_ms:.0f} ms")
        if self.load_of_others is not None and self.load_of_others > LOAD:
            notes.append(f"other programs used {self.load_of_others:.1f} CPUs")
        return tuple(notes)

    @property
    def disturbed(self) -> bool:
        """Whether nothing can be claimed: a thread that waits for a CPU holds up its whole team, by any
        factor."""
        stolen, others = (self.steal or 0.0) > MUCH, (self.load_of_others or 0.0) > LOAD
        return stolen or others or bool(self.throttled_ms)

    def to_dict(self) -> dict[str, object]:
        return {**self._asdict(), "disturbed": self.disturbed, "notes": list(self.notes)}


def between(before: Snapshot, after: Snapshot) -> Conditions:
    """What the counters say; None for what is not counted."""
    stolen, total = _grown(before.stolen, after.stolen), _grown(before.total, after.total)
    throttled, busy = _grown(before.throttled_ms, after.throttled_ms), _grown(before.busy, after.busy)
    seconds, own = after.moment - before.moment, after.own - before.own
    return Conditions(
        round(stolen / total, 4) if stolen is not None and total else None,
        None if throttled is None else round(throttled, 1),
        round(max(0.0, busy - own) / seconds, 2) if busy is not None and seconds > 0 else None,
    )


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)


def look(processes: Iterable[int], tree: Tree | None = None) -> Snapshot:
    """The counters now. `processes`: those of the study beside this one, whose work is no load of others."""
    tree = tree or Tree()
    ticks = _machine(tree)
    own = sum(_used(tree, process) for process in ("self", *map(str, processes)))
    return Snapshot(time.monotonic(), *ticks, own / TICK, read_throttled_ms(tree))


def _machine(tree: Tree) -> tuple[float | None, float | None, float | None]:
    """Busy, stolen and all CPU seconds since boot."""
    for line in tree.lines("/proc/stat", lambda line: line.startswith("cpu ")):
        # user nice system idle iowait irq softirq steal; what guests use is counted in user
        ticks = [int(word) / TICK for word in line.split()[1:9] if is_number(word)]
        if len(ticks) == 8 and sum(ticks) > 0:
            return sum(ticks) - ticks[3] - ticks[4] - ticks[7], ticks[7], sum(ticks)
    return None, None, None


def _used(tree: Tree, process: str) -> int:
    """Ticks of a process and of those children that have ended; 0 for a process that is gone."""
    fields = (tree.text(f"/proc/{process}/stat") or "").rpartition(")")[2].split()
    return sum(int(word) for word in fields[11:15] if is_number(word))

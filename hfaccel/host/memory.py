"""RAM and the state of transparent huge pages."""

from __future__ import annotations

from hfaccel.host.facts import MemoryFacts, ThpMode
from hfaccel.host.tree import Tree, is_number

THP = "/sys/kernel/mm/transparent_hugepage"
MODES: dict[str, ThpMode] = {"always": "always", "madvise": "madvise", "never": "never"}


def read_memory(tree: Tree) -> MemoryFacts:
    mode = _selected(tree.text(f"{THP}/enabled"))
    if mode not in MODES and mode:
        tree.problem(f"{THP}/enabled", f"always, madvise or never was expected, but it selects {mode[:40]!r}")
    return MemoryFacts(
        total=_field(tree.text("/proc/meminfo"), "MemTotal") * 1024,
        thp=MODES.get(mode, "absent"),
        thp_defrag=_selected(tree.text(f"{THP}/defrag")),
        thp_disabled=_has_line(tree.text("/proc/self/status"), "THP_enabled", "0"),
    )


def _selected(text: str | None) -> str:
    """`always [madvise] never` -> `madvise`."""
    return (text or "").partition("[")[2].partition("]")[0]


def _field(text: str | None, name: str) -> int:
    for line in (text or "").splitlines():
        key, _, value = line.partition(":")
        number = value.split()[:1]
        if key == name and number and is_number(number[0]):
            return int(number[0])
    return 0


def _has_line(text: str | None, name: str, value: str) -> bool:
    pairs = (line.partition(":") for line in (text or "").splitlines())
    return any(key == name and rest.strip() == value for key, _, rest in pairs)

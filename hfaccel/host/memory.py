"""RAM and the state of transparent huge pages."""

from __future__ import annotations

from hfaccel.host.facts import MemoryFacts, ThpMode
from hfaccel.host.topology import kept_status
from hfaccel.host.tree import Tree, is_number

THP = "/sys/kernel/mm/transparent_hugepage"
MODES: dict[str, ThpMode] = {"always": "always", "madvise": "madvise", "never": "never"}


def read_memory(tree: Tree) -> MemoryFacts:
    mode = _selected(tree.text(f"{THP}/enabled"))
    if mode not in MODES and mode:
        tree.problem(f"{THP}/enabled", f"always, madvise or never was expected, but it selects {mode[:40]!r}")
    status = tree.lines("/proc/self/status", kept_status)
    return MemoryFacts(
        total=(tree.number_after("/proc/meminfo", "MemTotal:") or 0) * 1024,
        thp=MODES.get(mode, "absent"),
        thp_defrag=_selected(tree.text(f"{THP}/defrag")),
        thp_disabled=any(line.split() == ["THP_enabled:", "0"] for line in status),
        thp_shared=_selected(tree.text(f"{THP}/shmem_enabled")),
        thp_sizes=_sizes(tree),
    )


def thp_problem(memory: MemoryFacts) -> str:
    """Why a process gets no 2 MiB pages although it asks for them; "" where it does.

    The kernel accepts MADV_HUGEPAGE in every mode, so the result of that call proves nothing.
    """
    if memory.thp_disabled:
        return "transparent huge pages are switched off for this process (PR_SET_THP_DISABLE)"
    if thp_mode(memory) in ("always", "madvise"):
        return ""
    return f"the kernel gives no transparent huge pages (mode {thp_mode(memory)})"


def thp_mode(memory: MemoryFacts) -> str:
    """The mode of 2 MiB pages: since Linux 6.8 their own, which may be to inherit the general one."""
    own = dict(memory.thp_sizes).get(2 << 20, "inherit")
    return memory.thp if own == "inherit" else own


def _sizes(tree: Tree) -> tuple[tuple[int, str], ...]:
    """Since Linux 6.8 there are sizes below 2 MiB, each with a mode of its own."""
    sizes = []
    for name in tree.names(THP, "hugepages-*kB"):
        number = name.removeprefix("hugepages-").removesuffix("kB")
        mode = _selected(tree.text(f"{THP}/{name}/enabled"))
        if is_number(number) and mode:
            sizes.append((int(number) * 1024, mode))
    return tuple(sorted(sizes))


def _selected(text: str | None) -> str:
    """`always [madvise] never` -> `madvise`."""
    return (text or "").partition("[")[2].partition("]")[0]

"""What really took effect, read back from the system: the report shows effect, not intention."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

from hfaccel import native
from hfaccel.host import read_host
from hfaccel.portable import affinity


@dataclass(frozen=True)
class Finding:
    """One fact about the running process; `source` says where it was read."""

    subject: str
    value: str
    source: str

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def verify() -> list[Finding]:
    facts = read_host()
    findings = [
        Finding("affinity", _cpu_list(affinity()), "sched_getaffinity"),
        Finding("allocator", allocator_in_use(), "the library that malloc resolves to"),
        Finding("OpenMP", openmp_runtimes(facts.mapped) or "none loaded", "/proc/self/maps"),
        Finding("huge pages", f"mode {facts.memory.thp}", "/sys/kernel/mm/transparent_hugepage"),
    ]
    torch = sys.modules.get("torch")
    if torch is not None:
        findings.append(Finding("threads", str(torch.get_num_threads()), "torch.get_num_threads"))
    return findings


def allocator_in_use() -> str:
    """File name of the library that serves malloc; "unknown" without the native part."""
    if native.arena is None:
        return "unknown"
    try:
        return native.arena.malloc_owner().rpartition("/")[2]
    except OSError as error:
        return f"unknown ({error.strerror})"


def openmp_runtimes(mapped: tuple[str, ...]) -> str:
    """File names of the OpenMP runtimes in the process; more than one is a fault."""
    names = (path.rpartition("/")[2] for path in mapped)
    return ", ".join(name for name in names if name.startswith(("libgomp", "libiomp5", "libomp")))


def _cpu_list(cpus: set[int]) -> str:
    return ",".join(map(str, sorted(cpus)))

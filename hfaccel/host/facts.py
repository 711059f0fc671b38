"""The facts about a host, as plain frozen data. Nothing here decides, nothing here reads.

Named tuples, not dataclasses: importing `dataclasses` and defining a dozen of them would take a third of the
time that hfaccel-run needs to start.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

ThpMode = Literal["always", "madvise", "never", "absent"]


class Processor(NamedTuple):
    """What kind of CPU this is."""

    architecture: str  # "x86_64", "aarch64"; "" where unknown
    vendor: str  # "AuthenticAMD", "GenuineIntel", "ARM"; "" where unknown
    model_name: str
    codename: str  # of the core: "Sapphire Rapids", "Zen 4", "Neoverse V1"; "" where unknown
    family: int  # family, model and stepping as the kernel counts them; 0 where it does not
    model: int
    stepping: int
    microcode: str
    isa: tuple[str, ...]  # of ISA_FLAGS, those that programs can use
    withheld: tuple[str, ...]  # "flag: reason" for each flag that the kernel lists but programs cannot use
    kernel_sets: tuple[str, ...] = ()  # of KERNEL_SETS, those that can run here, the best first
    kernel_cap: str = ""  # the value of HFACCEL_MAX_ISA; "" where unset

    def has(self, flag: str) -> bool:
        return flag in self.isa


class Cache(NamedTuple):
    level: int
    kind: str  # "Data", "Instruction", "Unified"
    size: int  # bytes
    cpus: tuple[int, ...]  # CPU numbers that share it


class LogicalCpu(NamedTuple):
    """A CPU as the scheduler counts them: a core, or one of its hyper-threads.

    `cpu` is the number in affinity masks. `core` and `package` are ids that mean nothing to the scheduler and
    repeat between sockets; together they name a physical core.
    """

    cpu: int
    core: int
    package: int
    node: int
    efficient: bool = False  # a small core of a hybrid processor


class HugePages(NamedTuple):
    """A pool of explicit huge pages (hugetlb)."""

    size: int  # bytes of one page
    total: int
    free: int


class Node(NamedTuple):
    """A NUMA node; memory-only nodes have no CPUs, others may have no memory."""

    number: int
    cpus: tuple[int, ...]
    memory: int  # bytes
    distances: tuple[int, ...]  # to the nodes in order of their numbers; 10 is local
    huge_pages: tuple[HugePages, ...]


class Topology(NamedTuple):
    cpus: tuple[LogicalCpu, ...]  # online, ascending by CPU number
    offline: tuple[int, ...] = ()  # present, switched off
    nodes: tuple[Node, ...] = ()  # ascending by number; at least one
    caches: tuple[Cache, ...] = ()  # of the first CPU
    governor: str = ""  # cpufreq's, of the first CPU; "" on most virtual machines

    def cores(self, mask: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The CPUs in `mask`, grouped by core; cores of one node follow each other."""
        known = {entry.cpu: entry for entry in self.cpus}
        groups: dict[tuple[int, int, int], list[int]] = {}
        for cpu in sorted(mask):
            # A CPU without topology counts as a core of its own.
            entry = known.get(cpu) or LogicalCpu(cpu, cpu, -1, 0)
            groups.setdefault((entry.node, entry.package, entry.core), []).append(cpu)
        ordered = sorted(groups.items(), key=lambda item: (item[0][0], item[1][0]))
        return tuple(tuple(cpus) for _, cpus in ordered)

    def nodes_of(self, cpus: tuple[int, ...]) -> tuple[int, ...]:
        """Numbers of the nodes that these CPUs belong to, ascending."""
        wanted = set(cpus)
        return tuple(sorted({entry.node for entry in self.cpus if entry.cpu in wanted}))

    def node_of(self) -> dict[int, int]:
        """CPU number -> number of its node."""
        return {entry.cpu: entry.node for entry in self.cpus}

    @property
    def packages(self) -> int:
        return len({entry.package for entry in self.cpus})

    @property
    def nodes_per_package(self) -> int:
        """More than 1 with sub-NUMA clustering (Intel's SNC, AMD's NPS)."""
        pairs = {(entry.package, entry.node) for entry in self.cpus}
        return max(1, len(pairs) // max(1, self.packages))


class Limits(NamedTuple):
    """What the container and the process may use."""

    affinity: tuple[int, ...]  # CPU numbers
    cpu_quota: float | None  # CPUs' worth of time; None: unlimited
    memory_limit: int | None  # bytes, of the cgroup; None: unlimited
    cpuset: tuple[int, ...] | None = None  # CPU numbers of the cgroup; None: it has no cpuset
    memory_nodes: tuple[int, ...] = ()  # NUMA nodes that memory may come from
    parent_affinity: tuple[int, ...] = ()  # CPU numbers of the process that started this one
    throttled: int | None = None  # periods in which the quota was used up, so far; None: not counted
    steal: float = 0.0  # share of CPU time since boot that the hypervisor gave to others
    locked_memory: int | None = None  # bytes that may be locked (RLIMIT_MEMLOCK); None: unlimited
    siblings: int = 1  # processes of the same parent and program, including this one: they share the limits


class MemoryFacts(NamedTuple):
    total: int  # bytes of RAM; 0 where unknown
    thp: ThpMode
    thp_defrag: str
    thp_disabled: bool  # for this process, by prctl(PR_SET_THP_DISABLE)
    thp_shared: str = ""  # of shared memory (shmem_enabled)
    thp_sizes: tuple[tuple[int, str], ...] = ()  # (bytes, mode) of the sizes below PMD size (mTHP)


class Library(NamedTuple):
    """A shared library that can be preloaded."""

    kind: str  # a name of ALLOCATORS or OPENMP_RUNTIMES
    path: str


class Software(NamedTuple):
    """What else on this machine the plan depends on."""

    tensorflow: bool  # installed for this Python
    cuda: bool  # the kernel has an NVIDIA driver
    hub_cache: str  # folder in which huggingface_hub keeps models
    hub_cache_filesystem: str  # type of that folder's file system; "" where unknown
    hub_cache_remote: bool  # it is a network file system
    hub_cache_in_use: bool  # the folder holds models already; looked up where it is remote
    local_cache: str  # a folder on a local disk that could serve instead; "" where there is none


class HostFacts(NamedTuple):
    kernel: str  # release
    processor: Processor
    topology: Topology
    limits: Limits
    memory: MemoryFacts
    allocators: tuple[Library, ...]  # on disk, usable, in order of preference
    openmp: tuple[Library, ...]  # OpenMP runtimes on disk that could replace torch's own
    libc: str  # "glibc", "musl" or "unknown"
    libc_version: str
    mapped: tuple[str, ...]  # shared libraries loaded into this process
    software: Software
    problems: tuple[str, ...]  # what could not be read, one line each

    def to_dict(self) -> dict[str, object]:
        return {name: to_data(item) for name, item in self._asdict().items()}


def to_data(value: object) -> object:
    """Facts and choices for JSON: named tuples become dicts, other tuples lists."""
    if hasattr(value, "_asdict"):
        return {name: to_data(item) for name, item in value._asdict().items()}
    return [to_data(item) for item in value] if isinstance(value, tuple) else value

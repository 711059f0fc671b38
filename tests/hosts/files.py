"""The files of a host that is described by a Host."""

from __future__ import annotations

from typing import NamedTuple

from chips import Chip

from hfaccel.host.tree import format_number_list, parse_number_list

Files = dict[str, str]
GIB = 1032192  # kB that the kernel counts of each GiB: 1/64 is its own

MODES = "always madvise never"
SMALL_THP = dict.fromkeys((16, 32, 64, 128, 256, 512, 1024), "never") | {2048: "inherit"}
DEFRAG = "always defer defer+madvise madvise never"
SHMEM = "always within_size advise never deny force"
DEBIAN = "/usr/lib/x86_64-linux-gnu"
VENV = "/opt/venv/lib/python3.12/site-packages/cmeel.prefix/lib:/opt/venv/lib"
DISK = "22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw"
OVERLAY = "612 480 0:98 / / rw,relatime master:150 - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w"
CGROUP2 = "31 24 0:27 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup2 rw,nsdelegate"


class Host(NamedTuple):
    name: str
    about: str  # what it is, and its point
    chip: Chip
    nodes: tuple[tuple[int, int, int], ...]  # socket, cores, GiB of memory
    files: Files = {}  # what else there is; below a path with "" there is nothing
    threads: int = 2
    numbering: str = "split"  # "adjacent": 0 and 1 are siblings; "interleaved": sockets take turns
    small_cores: int = 0  # of a hybrid processor, after the others
    distances: tuple[int, int] = (11, 21)  # to other nodes on the same socket, on others
    offline: str = ""
    kernel: str = "5.15.0-122-generic"
    affinity: str = ""  # Cpus_allowed_list; every CPU where not told
    locked: str = "8388608"
    steal: int = 0
    governor: str = ""
    thp: str = "madvise"
    shmem: str = "never"
    small_thp: dict[int, str] | None = None  # modes of the sizes (kB); None: a kernel before 6.8
    mounts: tuple[str, ...] = (DISK, CGROUP2)
    libraries: tuple[str, ...] = ()
    libc: str = f"{DEBIAN}/libc.so.6"
    glibc: str = "2.35"
    cache: str = "/home/ada/.cache/huggingface/hub"
    probes: Files = {}


# Places: every logical CPU as (node, core, thread), in the order of the CPU numbers


def places(host: Host) -> list[tuple[int, int, int]]:
    cores = [(node, core) for node, (_, count, _) in enumerate(host.nodes) for core in range(count)]
    if host.numbering == "interleaved":
        cores.sort(key=lambda place: place[1])
    threads = range(host.threads)
    small = [(0, host.nodes[0][1] + number, 0) for number in range(host.small_cores)]
    if host.numbering == "adjacent":
        return [(*core, thread) for core in cores for thread in threads] + small
    return [(*core, thread) for thread in threads for core in cores] + small


def topology_files(host: Host) -> Files:
    offline = parse_number_list(host.offline)
    every = dict(enumerate(places(host)))
    online = {cpu: place for cpu, place in every.items() if cpu not in offline}
    devices = "/sys/devices"
    files = {f"{devices}/system/cpu/online": listed(online), f"{devices}/system/cpu/present": listed(every)}
    for cpu, (node, core, _) in online.items():
        package = host.nodes[node][0]
        siblings = [c for c, place in online.items() if place[:2] == (node, core)]
        neighbours = [c for c, place in online.items() if host.nodes[place[0]][0] == package]
        base = f"{devices}/system/cpu/cpu{cpu}"
        files[f"{base}/topology/thread_siblings_list"] = listed(siblings)
        files[f"{base}/topology/core_siblings_list"] = listed(neighbours)
        files[f"{base}/topology/physical_package_id"] = str(package)
        if cpu == 0:
            shared = neighbours_in_l3(host, neighbours, online)
            files |= cache_files(f"{base}/cache", host.chip, listed(siblings), listed(shared))
    if host.governor:
        files[f"{devices}/system/cpu/cpu0/cpufreq/scaling_governor"] = host.governor
    if host.small_cores:
        large = [cpu for cpu in every if cpu < len(every) - host.small_cores]
        files[f"{devices}/cpu_core/cpus"] = listed(large)
        files[f"{devices}/cpu_atom/cpus"] = listed(every.keys() - large)
    return files


def neighbours_in_l3(host: Host, neighbours: list[int], online: dict[int, tuple[int, int, int]]) -> list[int]:
    cores = sorted({online[cpu][:2] for cpu in neighbours})[: host.chip.l3_cores]
    return [cpu for cpu in neighbours if online[cpu][:2] in cores]


def cache_files(base: str, chip: Chip, core: str, l3: str) -> Files:
    kinds = ((1, "Data", core), (1, "Instruction", core), (2, "Unified", core), (3, "Unified", l3))
    files = {}
    for index, (level, kind, shared) in enumerate(kinds):
        values = {"level": level, "type": kind, "size": f"{chip.caches[index]}K", "shared_cpu_list": shared}
        files |= {f"{base}/index{index}/{name}": str(value) for name, value in values.items()}
    return files


def node_files(host: Host) -> Files:
    offline = parse_number_list(host.offline)
    files = {}
    for node, (socket, cores, gib) in enumerate(host.nodes):
        base = f"/sys/devices/system/node/node{node}"
        near, far = host.distances
        row = [
            10 if other == node else near if there == socket and cores and count else far
            for other, (there, count, _) in enumerate(host.nodes)
        ]
        cpus = [cpu for cpu, place in enumerate(places(host)) if place[0] == node and cpu not in offline]
        files[f"{base}/cpulist"] = listed(cpus)
        files[f"{base}/distance"] = " ".join(map(str, row))
        files[f"{base}/meminfo"] = f"Node {node} MemTotal:       {gib * GIB} kB"
        files |= {f"{base}/hugepages/hugepages-{size}kB/nr_hugepages": "0" for size in (2048, 1048576)}
    return files


def listed(cpus) -> str:
    return format_number_list(tuple(sorted(cpus)))


# The rest of /proc and /sys


def cpuinfo(host: Host) -> str:
    chip, (family, model, stepping) = host.chip, host.chip.numbers
    fields = {"vendor_id": chip.vendor, "cpu family": family, "model": model}
    fields |= {"model name": chip.name, "stepping": stepping, "microcode": chip.microcode}
    fields |= {"cache size": f"{chip.caches[3]} KB", "flags": chip.flags, "bogomips": "5000.00"}
    if chip.vendor == "ARM":
        fields = {"BogoMIPS": "2100.00", "Features": chip.flags, "CPU implementer": "0x41"}
        fields |= {"CPU architecture": family, "CPU variant": "0x1", "CPU part": f"{model:#x}"}
        fields["CPU revision"] = stepping
    first = "".join(f"{name}\t: {value}\n" for name, value in fields.items())
    online = parse_number_list(topology_files(host)["/sys/devices/system/cpu/online"])
    return "\n".join(f"processor\t: {cpu}\n{'' if cpu else first}" for cpu in online)


def process_files(host: Host, online: str) -> Files:
    status = f"THP_enabled:\t1\nCpus_allowed_list:\t{host.affinity or online}\n"
    status += f"Mems_allowed_list:\t{listed(range(len(host.nodes)))}\n"
    libraries = (host.libc, host.libc.replace("libc.so", "libm.so"))
    return {
        "/proc/self/status": status,
        "/proc/41/status": status,
        "/proc/self/limits": f"Max locked memory         {host.locked:<21}{host.locked:<21}bytes",
        "/proc/self/cgroup": "0::/",
        "/proc/self/mountinfo": "\n".join(host.mounts),
        "/proc/self/maps": "\n".join(
            f"7f1c2{number}000000-7f1c2{number}028000 r--p 00000000 fd:01 21{number}{'':24}{path}"
            for number, path in enumerate(dict.fromkeys(libraries))
        ),
    }


def system_files(host: Host) -> Files:
    thp = "/sys/kernel/mm/transparent_hugepage"
    small = {} if host.small_thp is None else SMALL_THP | host.small_thp
    total = sum(gib for _, _, gib in host.nodes) * GIB
    return {
        "/proc/cpuinfo": cpuinfo(host),
        "/proc/meminfo": f"MemTotal:       {total} kB",
        "/proc/stat": f"cpu  400000 0 100000 {499000 - host.steal} 900 0 100 {host.steal} 0 0",
        "/proc/sys/kernel/osrelease": host.kernel,
        f"{thp}/enabled": selected(MODES, host.thp),
        f"{thp}/defrag": selected(DEFRAG, "madvise"),
        f"{thp}/shmem_enabled": selected(SHMEM, host.shmem),
    } | {
        f"{thp}/hugepages-{size}kB/enabled": selected("always inherit madvise never", mode)
        for size, mode in small.items()
    }


def selected(words: str, word: str) -> str:
    return " ".join(f"[{each}]" if each == word else each for each in words.split())


def probe_files(host: Host) -> Files:
    answers = {
        "machine": "aarch64" if host.chip.vendor == "ARM" else "x86_64",
        "xcr0": host.chip.xcr0,
        "xcomp": host.chip.xcr0 if asks_for_state(host.kernel) else "0x0",
        "ONEDNN_MAX_CPU_ISA": "",
        "glibc_version": host.glibc,
        "library_folders": VENV,
        "hub_cache": host.cache,
        "tensorflow": "no",
        "parent": "41",
    }
    return {f"/probes/{name}": answer for name, answer in (answers | host.probes).items()}


def asks_for_state(kernel: str) -> bool:
    """Whether it has ARCH_GET_XCOMP_SUPP."""
    return tuple(map(int, kernel.split(".")[:2])) >= (5, 16)


# Control groups


def group(mount="/sys/fs/cgroup", cpu="max 100000", memory="max", high="max", cpus="", throttled=0) -> Files:
    """The files of a group of version 2."""
    stat = f"usage_usec 91824\nuser_usec 80965\nsystem_usec 10859\nnr_periods {throttled * 2}\n"
    files = {"cpu.max": cpu, "memory.max": memory, "memory.high": high}
    files["cpu.stat"] = f"{stat}nr_throttled {throttled}\nthrottled_usec {throttled * 700}"
    if cpus:
        files["cpuset.cpus.effective"] = cpus
    return {f"{mount}/{name}": text for name, text in files.items()}


def root_group(cpus: str) -> Files:
    """The files of the machine's own root group, which has no limits."""
    stat = "usage_usec 91824\nuser_usec 80965\nsystem_usec 10859"
    return {"/sys/fs/cgroup/cpuset.cpus.effective": cpus, "/sys/fs/cgroup/cpu.stat": stat}


CGROUP1 = tuple(
    f"{number} 32 0:{number} {{root}} /sys/fs/cgroup/{name} ro,relatime - cgroup cgroup rw,{name}"
    for number, name in ((33, "cpu,cpuacct"), (34, "cpuset"), (35, "memory"))
)


def cgroup1(root: str) -> tuple[str, ...]:
    """The mounts of version 1, of which `root` is what is mounted."""
    return tuple(line.format(root=root) for line in CGROUP1)


def own_group1(path: str) -> Files:
    names = ((6, "memory"), (5, "cpuset"), (4, "cpu,cpuacct"), (1, "name=systemd"))
    return {"/proc/self/cgroup": "\n".join(f"{number}:{name}:{path}" for number, name in names)}


def quota1(group: str, quota: int, throttled: int = 0) -> Files:
    base = f"/sys/fs/cgroup/cpu,cpuacct{group}"
    stat = f"nr_periods {throttled * 2}\nnr_throttled {throttled}\nthrottled_time 0"
    files = {"cpu.cfs_quota_us": str(quota), "cpu.cfs_period_us": "100000", "cpu.stat": stat}
    return {f"{base}/{name}": text for name, text in files.items()}


def files_of(host: Host) -> Files:
    topology = topology_files(host)
    files = system_files(host) | process_files(host, topology["/sys/devices/system/cpu/online"])
    files |= topology | node_files(host) | probe_files(host) | dict.fromkeys(host.libraries, "") | host.files
    gone = [path for path, text in host.files.items() if not text]
    return {path: text for path, text in files.items() if not any(path.startswith(name) for name in gone)}

"""What cgroups (versions 1 and 2), the hypervisor and its own limits leave to this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from hfaccel.host.facts import Limits, Topology
from hfaccel.host.topology import read_affinity, status_list
from hfaccel.host.tree import Tree, is_number

UNLIMITED_DIGITS = 19  # version 1 writes 9223372036854771712, the largest multiple of a page


class Hierarchy(NamedTuple):
    """A mounted tree of cgroups."""

    controllers: tuple[str, ...]  # of version 1; ("",) is version 2
    mount: str  # where the tree is mounted
    root: str  # the group that is mounted there: inside a container, often the container's own


# Where systemd mounts the trees; for hosts whose /proc/self/mountinfo names none.
USUAL = (
    Hierarchy(("",), "/sys/fs/cgroup", "/"),
    Hierarchy(("cpu",), "/sys/fs/cgroup/cpu", "/"),
    Hierarchy(("cpu",), "/sys/fs/cgroup/cpu,cpuacct", "/"),
    Hierarchy(("cpuset",), "/sys/fs/cgroup/cpuset", "/"),
    Hierarchy(("memory",), "/sys/fs/cgroup/memory", "/"),
)


def read_limits(tree: Tree, topology: Topology) -> Limits:
    return Limits(
        affinity=read_affinity(tree, topology),
        cpu_quota=read_cpu_quota(tree),
        memory_limit=read_memory_limit(tree),
        cpuset=read_cpuset(tree),
        memory_nodes=status_list(tree, "/proc/self/status", "Mems_allowed_list") or (),
        parent_affinity=_parent_affinity(tree, topology),
        throttled=_throttled(tree),
        steal=_steal(tree),
        siblings=_siblings(tree),
        locked_memory=tree.number_after("/proc/self/limits", "Max locked memory"),
    )


def read_cpu_quota(tree: Tree) -> float | None:
    """CPUs' worth of time per second; the smallest limit on the way to the root wins."""
    quotas = [_quota_v2(tree, group) for group in _groups(tree, "")]
    quotas += [_quota_v1(tree, group) for group in _groups(tree, "cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def read_memory_limit(tree: Tree) -> int | None:
    """Bytes; the smallest limit on the way to the root wins."""
    limits: list[int | None] = []
    for group in _groups(tree, ""):
        limits += [_bytes(tree, f"{group}/memory.max"), _bytes(tree, f"{group}/memory.high")]
    for group in _groups(tree, "memory"):
        limits.append(_bytes(tree, f"{group}/memory.limit_in_bytes"))
    return min((limit for limit in limits if limit is not None), default=None)


def read_cpuset(tree: Tree) -> tuple[int, ...] | None:
    """CPU numbers of the nearest group that has a cpuset. The affinity mask lies within it."""
    files = [f"{group}/cpuset.cpus.effective" for group in _groups(tree, "")]
    files += [f"{group}/cpuset.effective_cpus" for group in _groups(tree, "cpuset")]
    return next(filter(None, map(tree.numbers, files)), None)


def _groups(tree: Tree, controller: str) -> Iterator[str]:
    """Folders of this process's group and its parents, as far as they are mounted.

    `controller` is "" for version 2. Inside a container the group that /proc names is often invisible; then
    the parents that exist are read, at least the root.
    """
    own = _own_group(tree, controller)
    for hierarchy in _hierarchies(tree):
        if controller in hierarchy.controllers:
            base = PurePosixPath(hierarchy.mount)
            inside = _below(own, hierarchy.root)
            for group in (inside, *inside.parents):
                yield str(base / str(group).lstrip("/"))


def _own_group(tree: Tree, controller: str) -> PurePosixPath:
    for line in tree.lines("/proc/self/cgroup"):
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if controller in names.split(","):
            return PurePosixPath("/") / path.lstrip("/")
    return PurePosixPath("/")


def _below(group: PurePosixPath, root: str) -> PurePosixPath:
    """A group's path, seen from the group that is mounted."""
    try:
        return PurePosixPath("/") / group.relative_to(root)
    except ValueError:  # another part of the tree is mounted, or the path is of another namespace
        return group


def _hierarchies(tree: Tree) -> tuple[Hierarchy, ...]:
    mounted = mounts(tree, lambda mount: mount.filesystem in ("cgroup", "cgroup2"))
    found = (
        Hierarchy(("",) if mount.filesystem == "cgroup2" else mount.options, mount.place, mount.root)
        for mount in mounted
    )
    return tuple(found) or USUAL


class Mount(NamedTuple):
    root: str  # the folder of the file system that is mounted
    place: str
    filesystem: str
    options: tuple[str, ...]  # of the file system


def mounts(tree: Tree, wanted: Callable[[Mount], bool]) -> list[Mount]:
    """The `wanted` mounts, in the order of /proc/self/mountinfo (see proc_pid_mountinfo(5))."""

    def keep(line: str) -> bool:
        mount = _mount(line)
        return mount is not None and wanted(mount)

    return [mount for line in tree.lines("/proc/self/mountinfo", keep) if (mount := _mount(line))]


def _mount(line: str) -> Mount | None:
    before, _, after = line.partition(" - ")
    left, right = before.split(), after.split()
    if len(left) < 5 or len(right) < 3:
        return None
    return Mount(_unescaped(left[3]), _unescaped(left[4]), right[0], tuple(right[2].split(",")))


def _unescaped(path: str) -> str:
    """The kernel writes a space as \\040, and tabs, newlines and backslashes likewise."""
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        path = path.replace(code, character)
    return path


def _quota_v2(tree: Tree, group: str) -> float | None:
    text = tree.text(f"{group}/cpu.max")
    if text is None:
        return None
    quota, _, period = text.partition(" ")
    if quota == "max":
        return None
    return _ratio(tree, f"{group}/cpu.max", quota, period)


def _quota_v1(tree: Tree, group: str) -> float | None:
    quota = tree.text(f"{group}/cpu.cfs_quota_us")
    period = tree.text(f"{group}/cpu.cfs_period_us")
    if quota is None or period is None or quota == "-1":
        return None
    return _ratio(tree, f"{group}/cpu.cfs_quota_us", quota, period)


def _ratio(tree: Tree, path: str, quota: str, period: str) -> float | None:
    if is_number(quota) and is_number(period) and int(quota) > 0 and int(period) > 0:
        return int(quota) / int(period)
    tree.problem(path, f"quota and period were expected, but it holds {quota[:20]!r} and {period[:20]!r}")
    return None


def _bytes(tree: Tree, path: str) -> int | None:
    text = tree.text(path)
    if text is None or text == "max":
        return None
    if text.isdecimal() and len(text) == UNLIMITED_DIGITS:
        return None
    if not is_number(text):
        tree.problem(path, f"bytes were expected, but it holds {text[:40]!r}")
        return None
    return int(text) or None


def _throttled(tree: Tree) -> int | None:
    """nr_throttled of this process's group."""
    for controller in ("", "cpu"):
        for group in _groups(tree, controller):
            for line in tree.lines(f"{group}/cpu.stat"):
                name, _, value = line.partition(" ")
                if name == "nr_throttled" and is_number(value):
                    return int(value)
    return None


def read_throttled_ms(tree: Tree) -> float | None:
    """Milliseconds in which this process's group waited for its quota, so far; None where not counted."""
    names = {"": ("throttled_usec", 1e-3), "cpu": ("throttled_time", 1e-6)}  # of versions 2 and 1
    for controller, (name, milliseconds) in names.items():
        for group in _groups(tree, controller):
            if (value := tree.number_after(f"{group}/cpu.stat", name)) is not None:
                return value * milliseconds
    return None


def _steal(tree: Tree) -> float:
    for line in tree.lines("/proc/stat", lambda line: line.startswith("cpu ")):
        times = [int(text) for text in line.split()[1:9] if is_number(text)]
        if len(times) == 8 and sum(times) > 0:
            return round(times[7] / sum(times), 4)  # user nice system idle iowait irq softirq steal
    return 0.0


def _siblings(tree: Tree) -> int:
    count = tree.probe("siblings", lambda: str(_count_siblings()))
    return max(1, int(count)) if is_number(count) else 1


def _count_siblings() -> int:
    """How many children of this process's parent run this Python."""
    try:
        own, parent = os.readlink("/proc/self/exe"), f"/proc/{os.getppid()}/task"  # noqa: PTH115
        files = [f"{parent}/{thread}/children" for thread in os.listdir(parent)]  # noqa: PTH208
        children = [child for file in files for child in _content(file).split()]
    except OSError:  # no /proc, or the parent belongs to another user
        return 1
    return sum(_runs(child, own) for child in children)


def _runs(process: str, program: str) -> bool:
    """Whether a process runs `program`. multiprocessing's own helper does not count: it computes nothing."""
    try:
        same = os.readlink(f"/proc/{process}/exe") == program  # noqa: PTH115
        return same and "multiprocessing.resource_tracker" not in _content(f"/proc/{process}/cmdline")
    except OSError:  # the process has ended, or belongs to another user
        return False


def _content(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
        return file.read()


def _parent_affinity(tree: Tree, topology: Topology) -> tuple[int, ...]:
    parent = tree.probe("parent", lambda: str(os.getppid()))
    online = {entry.cpu for entry in topology.cpus}
    mask = status_list(tree, f"/proc/{parent}/status", "Cpus_allowed_list") or ()
    return tuple(cpu for cpu in mask if cpu in online)

"""CPU quota and memory limit of the cgroups that this process is in, versions 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from hfaccel.host.tree import Tree, is_number

CGROUP = "/sys/fs/cgroup"
NO_LIMIT = 1 << 62  # version 1 says "unlimited" with a number near 2**63


def read_cpu_quota(tree: Tree) -> float | None:
    """CPUs' worth of time per second; the smallest limit on the way to the root wins."""
    quotas = [_quota_v2(tree, group) for group in _groups(tree, "")]
    for folder in ("cpu", "cpu,cpuacct"):
        quotas += [_quota_v1(tree, group) for group in _groups(tree, "cpu", folder)]
    return min((quota for quota in quotas if quota is not None), default=None)


def read_memory_limit(tree: Tree) -> int | None:
    """Bytes; the smallest limit on the way to the root wins."""
    limits: list[int | None] = []
    for group in _groups(tree, ""):
        limits += [_bytes(tree, f"{group}/memory.max"), _bytes(tree, f"{group}/memory.high")]
    for group in _groups(tree, "memory", "memory"):
        limits.append(_bytes(tree, f"{group}/memory.limit_in_bytes"))
    return min((limit for limit in limits if limit is not None), default=None)


def _groups(tree: Tree, controller: str, folder: str = "") -> Iterator[str]:
    """Folders of the own group and its parents, up to the root of the hierarchy.

    `controller` is "" for version 2. Inside a container the path that /proc names is often not visible;
    then only the parents that exist, at least the root, are read.
    """
    base = PurePosixPath(CGROUP) / folder
    for line in (tree.text("/proc/self/cgroup") or "").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if controller not in names.split(","):
            continue
        own = PurePosixPath("/") / path.lstrip("/")
        for group in (own, *own.parents):
            yield str(base / str(group).lstrip("/"))
        return
    yield str(base)


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
    if not is_number(text):
        tree.problem(path, f"bytes were expected, but it holds {text[:40]!r}")
        return None
    return int(text) if 0 < int(text) < NO_LIMIT else None

"""Functions of Linux that other systems may lack, for callers that can do without them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN = 1, 2, 4, 8  # sys/file.h, on Linux and macOS


def flock(descriptor: int, operation: int) -> None:
    """Lock an open file. Raises OSError where the lock is refused, or the system has no such locks."""
    try:
        import fcntl  # here, so that hfaccel-run does not load this extension into the program
    except ImportError:  # Windows
        raise OSError(errno.ENOTSUP, "this system has no file locks (flock)") from None
    fcntl.flock(descriptor, operation)


def affinity() -> set[int]:
    """CPU numbers on which the calling thread may run; all CPUs where the system has no affinity masks."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def set_affinity(cpus: Iterable[int]) -> None:
    """Raises OSError where the system refuses, or has no affinity masks."""
    if not hasattr(os, "sched_setaffinity"):
        raise OSError(errno.ENOTSUP, "this system has no affinity masks")
    os.sched_setaffinity(0, cpus)


def machine() -> str:
    """The processor's architecture in Linux's words; "" where unknown."""
    if hasattr(os, "uname"):
        return os.uname().machine
    name = os.environ.get("PROCESSOR_ARCHITECTURE", "").lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)

"""One copy of the weights for the instances of hfaccel-run, which do not descend from each other.

They meet in a folder that the launcher makes. A file there, named by the checksum of the weights, says which
process holds the weights. A later instance opens that process's descriptor, and uses the memory only if it is
sealed and has this checksum. So an outdated file or a reused process number does no harm: the instance then
makes its own copy.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hfaccel.portable import LOCK_EX, flock

FOLDER = "HFACCEL_SHARED"  # set by hfaccel-run for several instances; removed with the last of them


def meeting_folder() -> str:
    """Where the instances of this program meet; "" for a program that has one instance."""
    folder = os.environ.get(FOLDER, "")
    return folder if folder and Path(folder).is_dir() else ""


def meet(folder: str, name: str, make: Callable[[], int], is_it: Callable[[int], bool]) -> tuple[int, bool]:
    """The descriptor that is registered as `name`, and whether it belongs to another process.

    The first process makes the descriptor while the others wait. Raises what `make` raises, and OSError if
    the folder cannot be used.
    """
    with _locked(Path(folder, name)) as descriptor:
        for holder in os.pread(descriptor, 100, 0).decode("ascii", "replace").split():
            found = _opened(holder)
            if found >= 0 and is_it(found):
                return found, True
            if found >= 0:
                os.close(found)
        made = make()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}/fd/{made}".encode(), 0)
        return made, False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        flock(descriptor, LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)  # releases the lock too


def _opened(holder: str) -> int:
    """A descriptor of another process's file; -1 if that process or its descriptor is gone."""
    try:
        return os.open(f"/proc/{holder}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1

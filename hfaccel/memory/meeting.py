"""One copy for programs that do not descend from each other: the instances of hfaccel-run.

They meet in a folder that the launcher makes for them. A file in it, named by a checksum of everything
that is to be shared, says which process holds it; who comes later opens that process's descriptor, and
uses it only if it is sealed and has this checksum itself. So nothing has to be believed: a file left
behind, or a process number used again, leads to a copy of one's own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hfaccel.portable import LOCK_EX, flock

FOLDER = "HFACCEL_SHARED"  # set by hfaccel-run for several instances; removed with the last of them


def meeting_folder() -> str:
    """Where the instances of this program meet; "" for a program that is alone."""
    folder = os.environ.get(FOLDER, "")
    return folder if folder and Path(folder).is_dir() else ""


def meet(folder: str, name: str, make: Callable[[], int], is_it: Callable[[int], bool]) -> tuple[int, bool]:
    """The descriptor of what is called `name`, and whether another process made it.

    The first one makes it while the others wait. Raises what `make` raises, and OSError where the folder
    cannot be used.
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
        os.close(descriptor)  # and with it the lock


def _opened(holder: str) -> int:
    """A descriptor of what another process holds; -1 where there is no such process or descriptor."""
    try:
        return os.open(f"/proc/{holder}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1

"""A cache of folders on disk, for exports that take seconds to make.

An entry is a folder under a key. A process makes the entry beside its place and then renames it, so an entry
is complete or absent. A kernel lock (flock) for each key lets one process make the entry while others wait.
The kernel releases the lock when its holder dies; unfinished folders whose key is not locked are removed.
A manifest with sizes and checksums shows damage, and a damaged entry is made again. When the cache is too
large, the least recently used entries are removed.

Where the folder cannot be written or is full, the entry is made in a temporary folder, and removed after its
use; `Entry.problem` says so.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hfaccel import portable
from hfaccel.errors import UsageError

MANIFEST = "manifest.json"
LIMIT = 16.0  # GiB
FULL = (errno.ENOSPC, errno.EDQUOT)
LARGE_EXPORT = 2**30  # bytes: with less room on the disk, that may be why an export failed

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Entry:
    path: Path  # a finished folder
    found: bool  # whether it was there before
    problem: str = ""  # why it could not be kept


def default_folder() -> Path:
    """$HFACCEL_CACHE, or hfaccel in $XDG_CACHE_HOME, or ~/.cache/hfaccel.

    Raises UsageError where the path needs a home directory and there is none.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = Path(os.environ.get("HFACCEL_CACHE") or Path(caches, "hfaccel"))
    try:
        return named.expanduser()
    except RuntimeError as error:
        raise UsageError(f"{named} needs a home directory ({error}); set HFACCEL_CACHE to a folder") from None


def default_limit() -> int:
    """Bytes that the cache may hold: $HFACCEL_CACHE_LIMIT in GiB. Raises UsageError for another value."""
    text = os.environ.get("HFACCEL_CACHE_LIMIT") or str(LIMIT)
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise UsageError(f"HFACCEL_CACHE_LIMIT must be a number of GiB, 0 or more, but got {text!r}")
    return int(limit * 2**30)


class Cache:
    """Folders under keys: letters, digits, `-`, `_` and `.`. `limit` is in bytes."""

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = folder or default_folder()
        self.limit = default_limit() if limit is None else limit

    @contextlib.contextmanager
    def entry(self, key: str, make: Make) -> Iterator[Entry]:
        """The entry of that key, made by `make(folder)` unless it exists. The context keeps it from removal.

        Raises what `make` raises; but after an OSError, which may be the disk's, `make` first runs once more
        in a temporary folder. Raises OSError where no temporary folder can be made.
        """
        with contextlib.ExitStack() as stack:
            try:
                with contextlib.ExitStack() as locks:
                    entry = self._kept(key, make, locks)
                    stack.push(locks.pop_all())
            except OSError as error:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hfaccel-")))
                make(folder)
                entry = Entry(folder, False, f"not kept in {self.folder}: {error.strerror or error}")
            yield entry

    def _kept(self, key: str, make: Make, locks: contextlib.ExitStack) -> Entry:
        target = self.folder / "entries" / key
        try:
            for name in ("entries", "locks"):
                (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = locks.enter_context(self._lock_file(key))
            portable.flock(lock, portable.LOCK_SH)  # readers share the lock; a maker holds it alone
        except OSError:
            if intact(target):  # read-only, or without locks: whoever made the entry has finished
                return Entry(target, True)
            raise
        found = intact(target)
        if not found:
            found = self._made(lock, target, make)
        with contextlib.suppress(PermissionError):  # of another user: its time of use stays
            os.utime(target)
        return Entry(target, found)

    def _made(self, lock: int, target: Path, make: Make) -> bool:
        """Make the entry unless another process was first; whether another was. Leaves the lock shared."""
        found = there = False
        while not there:
            portable.flock(lock, portable.LOCK_EX)
            found = intact(target)
            if not found:
                self._fill(target, make)
                self._evict(keep=target.name)
            portable.flock(lock, portable.LOCK_SH)  # first unlocks: an eviction may come in between
            there = target.exists()
        return found

    @contextlib.contextmanager
    def _lock_file(self, key: str) -> Iterator[int]:
        descriptor = os.open(self.folder / "locks" / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        finally:
            portable.flock(descriptor, portable.LOCK_UN)  # a forked child has the descriptor too
            os.close(descriptor)

    def _fill(self, target: Path, make: Make) -> None:
        for path, key in unfinished_below(target.parent):
            if key == target.name:
                remove(path)
        remove(target)
        if full(target.parent):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        unfinished = beside(target)
        unfinished.mkdir(mode=0o700)
        try:
            make(unfinished)
            if full(unfinished):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            (unfinished / MANIFEST).write_text(json.dumps(describe(unfinished)))
            unfinished.rename(target)
        except Exception as error:
            if full(unfinished, LARGE_EXPORT) and not (isinstance(error, OSError) and error.errno in FULL):
                # Engines written in C++ report a full disk as any error, or not at all, and may have removed
                # the files that filled the disk.
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({error})") from error
            raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _evict(self, keep: str) -> None:
        """Remove unfinished folders, then entries that are not in use, the least recently used first, until
        the rest fits."""
        entries = self.folder / "entries"
        for path, key in unfinished_below(entries):
            self._removed(path, key)
        sizes: dict[Path, tuple[float, int]] = {}
        for path in entries.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process evicts too
                if not path.name.startswith("."):
                    sizes[path] = (path.stat().st_mtime, size(path))
        total = sum(bytes_ for _, bytes_ in sizes.values())
        for path, (_, bytes_) in sorted(sizes.items(), key=lambda item: item[1]):
            if total <= self.limit:
                break
            if path.name != keep and self._removed(path, path.name):
                total -= bytes_

    def _removed(self, path: Path, key: str) -> bool:
        """Remove a path unless its key is in use or the system refuses; whether it was removed."""
        try:
            with self._lock_file(key) as lock:
                portable.flock(lock, portable.LOCK_EX | portable.LOCK_NB)
                remove(path)
        except OSError:
            return False
        return True


def describe(folder: Path) -> dict[str, list[int | str]]:
    """Size and checksum of every file below the folder, the manifest left out."""
    return {
        str(path.relative_to(folder)): [path.stat().st_size, checksum(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def intact(folder: Path) -> bool:
    """Whether the folder is an entry whose files are as they were written."""
    try:
        return bool(json.loads((folder / MANIFEST).read_text()) == describe(folder))
    except (OSError, ValueError, RecursionError):  # an unreadable file, or damaged JSON
        return False


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def full(folder: Path, room: int = 2**20) -> bool:
    """Whether the file system has no room for `room` bytes."""
    return shutil.disk_usage(folder).free < room


def beside(path: Path) -> Path:
    """A new name in the same folder, for an entry that is not finished or no longer valid."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def unfinished_below(entries: Path) -> list[tuple[Path, str]]:
    """Paths named by `beside`, each with the key of its entry. The keys of living processes are locked."""
    return [(path, path.name[1:].rpartition(".")[0] or path.name) for path in entries.glob(".*")]


def remove(path: Path) -> None:
    """Rename a path and then delete it, so that nobody finds a half-deleted entry."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    doomed = path if path.name.startswith(".") else path.rename(beside(path))
    shutil.rmtree(doomed, ignore_errors=True)

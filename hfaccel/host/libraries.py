"""Shared libraries: those on disk that can be preloaded, and those that this process has mapped."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

from hfaccel.host.facts import Library
from hfaccel.host.tree import Tree
from hfaccel.portable import machine

# In order of preference, as measured (docs/method.md). mimalloc 2 (Debian's libmimalloc.so.2.0) causes more
# page faults than glibc, so only version 3 is searched for.
ALLOCATORS = {
    "mimalloc": ("libmimalloc.so.3",),
    "jemalloc": ("libjemalloc.so.2", "libjemalloc.so"),
    "tcmalloc": ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libtcmalloc_minimal.so"),
}
# Intel's runtime also serves programs that were built for GNU's.
OPENMP_RUNTIMES: dict[str, tuple[str, ...]] = {"intel": ("libiomp5.so",)}
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}


def find_libraries(tree: Tree, kinds: dict[str, tuple[str, ...]]) -> tuple[Library, ...]:
    """The first usable file of each kind, in the order of `kinds`."""
    folders = library_folders(tree)
    found: list[Library] = []
    for kind, names in kinds.items():
        candidates = (f"{folder}/{name}" for name in names for folder in folders)
        path = next((path for path in candidates if tree.has_file(path) and _is_usable(tree, path)), None)
        if path is not None:
            found.append(Library(kind, path))
    return tuple(found)


def library_folders(tree: Tree) -> list[str]:
    """Where libraries are searched: first in this environment's packages, then in the system's folders."""
    folders = tree.probe("library_folders", lambda: ":".join(_own_folders())).split(":")
    for folder in ("/usr/local/lib", "/usr/lib", "/usr/lib64", "/lib"):
        folders += [f"{folder}/{name}" for name in tree.names(folder, "*-linux-gnu")]
        folders.append(folder)
    return list(filter(None, folders))


def _own_folders() -> list[str]:
    packages = [f"{entry}/cmeel.prefix/lib" for entry in sys.path if entry.endswith("-packages")]
    conda = os.environ.get("CONDA_PREFIX")
    return [*packages, f"{sys.prefix}/lib", *([f"{conda}/lib"] if conda else [])]


def elf_problem(header: bytes, machine: str) -> str | None:
    """Why a library that starts with these 20 bytes cannot be preloaded on `machine`; None where it can."""
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return "is not an ELF library"
    if header[4] != 2:
        return "is a 32-bit library"
    (code,) = struct.unpack_from("<H", header, 18)
    built_for = ELF_MACHINES.get(code, f"machine {code}")
    return None if built_for == machine else f"is built for {built_for}, this machine is {machine}"


def preload_problem(path: str | Path) -> str | None:
    """Why this file cannot be preloaded here; None where it can."""
    try:
        with Path(path).open("rb") as file:
            return elf_problem(file.read(20), machine())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError as error:  # not a name that a file can have
        return f"cannot be read ({error})"


def _is_usable(tree: Tree, path: str) -> bool:
    if not tree.is_live:
        return True  # a captured host holds names, not libraries
    problem = preload_problem(path)
    if problem is not None:
        tree.problem(path, problem)
        tree.seen.pop(path)
    return problem is None


def read_mapped(tree: Tree) -> tuple[str, ...]:
    """Paths of the shared libraries in /proc/self/maps, in order of address."""
    paths: dict[str, None] = {}
    for line in tree.lines("/proc/self/maps", lambda line: ".so" in line and " 00000000 " in line):
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and ".so" in fields[5].rpartition("/")[2]:
            paths[fields[5]] = None
    return tuple(paths)


def read_libc(tree: Tree, mapped: tuple[str, ...]) -> tuple[str, str]:
    """Name and version; only glibc tells its version."""
    names = [path.rpartition("/")[2] for path in mapped]
    if any(name.startswith(("libc.so.6", "libc-2.")) for name in names):
        return "glibc", tree.probe("glibc_version", _glibc_version)
    if any(name.startswith(("ld-musl", "libc.musl")) for name in names):
        return "musl", ""
    return "unknown", ""


def _glibc_version() -> str:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")
    except (ValueError, OSError):
        return ""

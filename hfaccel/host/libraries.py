"""Shared libraries: allocators on disk that can be preloaded, and what this process has mapped."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

from hfaccel.host.facts import Library
from hfaccel.host.tree import Tree

# In order of preference, as measured: docs/method.md. mimalloc 2 (Debian's libmimalloc.so.2.0) faults
# more than glibc does, so only version 3 is looked for.
ALLOCATORS = {
    "mimalloc": ("libmimalloc.so.3",),
    "jemalloc": ("libjemalloc.so.2", "libjemalloc.so"),
    "tcmalloc": ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libtcmalloc_minimal.so"),
}
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}


def find_allocators(tree: Tree) -> tuple[Library, ...]:
    folders = library_folders(tree)
    found: list[Library] = []
    for kind, names in ALLOCATORS.items():
        candidates = (folder / name for name in names for folder in folders)
        # os.path and not Path.is_file: a folder that may not be looked into must not raise.
        usable = (path for path in candidates if os.path.isfile(path) and _is_usable(tree, path))  # noqa: PTH113
        path = next(usable, None)
        if path is not None:
            found.append(Library(kind, str(path)))
    return tuple(found)


def library_folders(tree: Tree) -> list[Path]:
    """Where allocators are found: this environment's packages first, the system's folders after."""
    folders: list[Path] = []
    if tree.is_live:
        folders += [Path(entry) / "cmeel.prefix/lib" for entry in sys.path if entry.endswith("-packages")]
        folders += [Path(sys.prefix) / "lib"]
        folders += [Path(conda) / "lib" for conda in [os.environ.get("CONDA_PREFIX")] if conda]
    for folder in ("/usr/local/lib", "/usr/lib", "/usr/lib64", "/lib"):
        folders += [*tree.children(folder, "*-linux-*"), tree.path(folder)]
    return folders


def elf_problem(header: bytes, machine: str) -> str | None:
    """Why a library that starts with these 20 bytes cannot be preloaded on `machine`; None: it can."""
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return "is not an ELF library"
    if header[4] != 2:
        return "is a 32-bit library"
    (code,) = struct.unpack_from("<H", header, 18)
    built_for = ELF_MACHINES.get(code, f"machine {code}")
    return None if built_for == machine else f"is built for {built_for}, this machine is {machine}"


def preload_problem(path: str | Path) -> str | None:
    """Why this file cannot be preloaded here; None: it can."""
    try:
        with Path(path).open("rb") as file:
            return elf_problem(file.read(20), os.uname().machine)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _is_usable(tree: Tree, path: Path) -> bool:
    if not tree.is_live:
        return True  # a captured tree holds names, not libraries
    problem = preload_problem(path)
    if problem is not None:
        tree.problem(str(path), problem)
    return problem is None


def read_mapped(tree: Tree) -> tuple[str, ...]:
    """Paths of the shared libraries in /proc/self/maps, in order of address."""
    paths: dict[str, None] = {}
    for line in (tree.text("/proc/self/maps") or "").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and ".so" in fields[5]:
            paths[fields[5]] = None
    return tuple(paths)


def read_libc(mapped: tuple[str, ...]) -> str:
    names = [path.rpartition("/")[2] for path in mapped]
    if any(name.startswith(("libc.so.6", "libc-2.")) for name in names):
        return "glibc"
    if any(name.startswith(("ld-musl", "libc.musl")) for name in names):
        return "musl"
    return "unknown"

"""Allocators on disk, libraries mapped, and whether a file can be preloaded."""

from __future__ import annotations

import os
import struct
import sys

import pytest

from hfaccel.host import Library, preload_problem
from hfaccel.host.libraries import elf_problem, find_allocators, read_libc, read_mapped
from hfaccel.host.tree import Tree

MULTIARCH = "usr/lib/x86_64-linux-gnu"


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def put(tree, *names):
    for name in names:
        path = tree.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def elf(bits=2, machine=62):
    return b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9) + struct.pack("<HH", 3, machine)


# Allocators


def test_allocators_come_in_order_of_preference(tree):
    names = ("libtcmalloc_minimal.so.4", "libjemalloc.so.2", "libmimalloc.so.3")
    put(tree, *(f"{MULTIARCH}/{name}" for name in names))
    found = find_allocators(tree)
    assert [library.kind for library in found] == ["mimalloc", "jemalloc", "tcmalloc"]
    assert found[1] == Library("jemalloc", str(tree.root / MULTIARCH / "libjemalloc.so.2"))


@pytest.mark.parametrize("folder", ["usr/local/lib", "usr/lib64", "lib", "lib/aarch64-linux-gnu", MULTIARCH])
def test_allocators_are_found_in_the_systems_folders(tree, folder):
    put(tree, f"{folder}/libjemalloc.so.2")
    (library,) = find_allocators(tree)
    assert library.path == str(tree.root / folder / "libjemalloc.so.2")


def test_each_kind_is_found_once_and_the_local_one_first(tree):
    put(tree, "usr/lib/libjemalloc.so.2", "usr/local/lib/libjemalloc.so.2", f"{MULTIARCH}/libjemalloc.so")
    (library,) = find_allocators(tree)
    assert library.path == str(tree.root / "usr/local/lib/libjemalloc.so.2")


def test_mimalloc_2_is_slower_than_glibc_and_not_looked_for(tree):
    put(tree, f"{MULTIARCH}/libmimalloc.so.2.0", f"{MULTIARCH}/libmimalloc.so")
    assert find_allocators(tree) == ()


def test_a_folder_named_like_a_library_is_none(tree):
    (tree.root / MULTIARCH / "libjemalloc.so.2").mkdir(parents=True)
    assert find_allocators(tree) == ()


def test_a_captured_tree_does_not_show_this_machines_packages(tree, monkeypatch):
    put(tree, "conda/lib/libjemalloc.so.2")
    monkeypatch.setenv("CONDA_PREFIX", str(tree.root / "conda"))
    assert find_allocators(tree) == ()


def put_package(folder, content):
    """A library as a wheel of the cmeel project installs it; returns its path."""
    path = folder / "site-packages/cmeel.prefix/lib/libmimalloc.so.3"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_the_environments_own_packages_come_first(tmp_path, monkeypatch):
    path = put_package(tmp_path, elf(machine={"x86_64": 62, "aarch64": 183}[os.uname().machine]))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages"), *sys.path])
    assert find_allocators(Tree("/"))[0] == Library("mimalloc", str(path))


def test_a_library_that_cannot_be_preloaded_is_a_problem(tmp_path, monkeypatch):
    path = put_package(tmp_path, b"a linker script")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages"), *sys.path])
    live = Tree("/")
    assert str(path) not in [library.path for library in find_allocators(live)]
    assert f"{path}: is not an ELF library" in live.problems


def test_a_folder_that_cannot_be_looked_into_is_no_exception(monkeypatch):
    # A name that is too long fails for every user; a folder without permission does not fail for root.
    monkeypatch.setenv("CONDA_PREFIX", "/" + "x" * 300)
    find_allocators(Tree("/"))


# Whether a file can be preloaded


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (elf(), None),
        (b"", "is not an ELF library"),
        (elf()[:19], "is not an ELF library"),
        (b"/* GNU ld script */  ", "is not an ELF library"),
        (elf(bits=1), "is a 32-bit library"),
        (elf(machine=183), "is built for aarch64, this machine is x86_64"),
        (elf(machine=8), "is built for machine 8, this machine is x86_64"),
    ],
)
def test_the_header_tells_what_a_library_is_for(header, problem):
    assert elf_problem(header, "x86_64") == problem


def test_this_python_is_built_for_this_machine():
    assert preload_problem(sys.executable) is None


@pytest.mark.parametrize("name", ["missing.so", "."])
def test_what_cannot_be_read_cannot_be_preloaded(tmp_path, name):
    assert preload_problem(tmp_path / name).startswith("cannot be read (")


# What is mapped


def test_mapped_libraries_are_listed_once_and_in_order(tree):
    lines = [
        "7f00-7f01 r--p 00000000 fd:01 1 /usr/bin/python3.11",
        "7f01-7f02 rw-p 00000000 00:00 0",
        "7f02-7f03 r--p 00000000 fd:01 3 /opt/with space/libz.so.1",
        "7f03-7f04 r-xp 00001000 fd:01 3 /opt/with space/libz.so.1",
        "7f04-7f05 r--p 00000000 fd:01 2 /usr/lib/libc.so.6",
        "7f05-7f06 rw-p 00000000 00:00 0 [stack]",
    ]
    put(tree, "proc/self/maps")
    (tree.root / "proc/self/maps").write_text("\n".join(lines))
    assert read_mapped(tree) == ("/opt/with space/libz.so.1", "/usr/lib/libc.so.6")


@pytest.mark.parametrize(
    ("mapped", "libc"),
    [
        (("/usr/lib/libm.so.6", "/usr/lib/x86_64-linux-gnu/libc.so.6"), "glibc"),
        (("/lib64/libc-2.28.so",), "glibc"),
        (("/lib/ld-musl-x86_64.so.1",), "musl"),
        (("/lib/libc.musl-x86_64.so.1",), "musl"),
        (("/usr/lib/libcrypt.so.1",), "unknown"),
        ((), "unknown"),
    ],
)
def test_the_libc_is_told_by_its_file_name(mapped, libc):
    assert read_libc(mapped) == libc

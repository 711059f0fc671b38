"""Allocators on disk, libraries mapped, and whether a file can be preloaded."""

from __future__ import annotations

import os
import struct
import sys

import pytest
from trees import FORMS, tree_maker

from hfaccel.host import Library, preload_problem
from hfaccel.host.libraries import (
    ALLOCATORS,
    OPENMP_RUNTIMES,
    elf_problem,
    find_libraries,
    library_folders,
    read_libc,
    read_mapped,
)
from hfaccel.host.tree import Tree

MULTIARCH = "/usr/lib/x86_64-linux-gnu"


@pytest.fixture(params=FORMS)
def tree_of(request, tmp_path):
    return tree_maker(request.param, tmp_path)


@pytest.fixture
def allocators_of(tree_of):
    """Of a host with these files, and with these folders of its environment."""

    def find(*names, folders=""):
        return find_libraries(
            tree_of({"/probes/library_folders": folders, **dict.fromkeys(names, "")}), ALLOCATORS
        )

    return find


def elf(bits=2, machine=62):
    return b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9) + struct.pack("<HH", 3, machine)


# Libraries on disk


def test_allocators_come_in_order_of_preference(allocators_of):
    names = ("libtcmalloc_minimal.so.4", "libjemalloc.so.2", "libmimalloc.so.3")
    assert allocators_of(*(f"{MULTIARCH}/{name}" for name in names)) == (
        Library("mimalloc", f"{MULTIARCH}/libmimalloc.so.3"),
        Library("jemalloc", f"{MULTIARCH}/libjemalloc.so.2"),
        Library("tcmalloc", f"{MULTIARCH}/libtcmalloc_minimal.so.4"),
    )


@pytest.mark.parametrize(
    "folder", ["/usr/local/lib", "/usr/lib64", "/lib", "/lib/aarch64-linux-gnu", MULTIARCH, "/opt/env/lib"]
)
def test_libraries_are_found_in_the_systems_folders_and_the_environments(allocators_of, folder):
    path = f"{folder}/libjemalloc.so.2"
    assert allocators_of(path, folders="/opt/none/lib:/opt/env/lib") == (Library("jemalloc", path),)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("mimalloc", "libmimalloc.so.3"),
        ("jemalloc", "libjemalloc.so.2"),
        ("jemalloc", "libjemalloc.so"),
        ("tcmalloc", "libtcmalloc_minimal.so.4"),
        ("tcmalloc", "libtcmalloc.so.4"),
        ("tcmalloc", "libtcmalloc_minimal.so"),
    ],
)
def test_an_allocator_may_have_any_of_its_names(allocators_of, kind, name):
    assert allocators_of(f"{MULTIARCH}/{name}") == (Library(kind, f"{MULTIARCH}/{name}"),)


def test_each_kind_is_found_once_and_the_environments_own_first(allocators_of):
    names = ("/usr/lib/libjemalloc.so.2", "/usr/local/lib/libjemalloc.so.2", "/opt/env/lib/libjemalloc.so.2")
    assert allocators_of(*names) == (Library("jemalloc", "/usr/local/lib/libjemalloc.so.2"),)
    assert allocators_of(*names, folders="/opt/env/lib") == (
        Library("jemalloc", "/opt/env/lib/libjemalloc.so.2"),
    )


def test_a_versioned_name_is_better_than_a_nearer_folder(allocators_of):
    names = ("/usr/local/lib/libjemalloc.so", f"{MULTIARCH}/libjemalloc.so.2")
    assert allocators_of(*names) == (Library("jemalloc", f"{MULTIARCH}/libjemalloc.so.2"),)


def test_mimalloc_2_is_slower_than_glibc_and_not_looked_for(allocators_of):
    assert allocators_of(f"{MULTIARCH}/libmimalloc.so.2.0", f"{MULTIARCH}/libmimalloc.so") == ()


def test_a_folder_named_like_a_library_is_none(allocators_of):
    assert allocators_of(f"{MULTIARCH}/libjemalloc.so.2/file") == ()


def test_intels_openmp_is_found_like_an_allocator(tree_of):
    tree = tree_of({"/probes/library_folders": "/opt/conda/lib", "/opt/conda/lib/libiomp5.so": ""})
    assert find_libraries(tree, OPENMP_RUNTIMES) == (Library("intel", "/opt/conda/lib/libiomp5.so"),)
    assert find_libraries(tree, ALLOCATORS) == ()


def test_only_the_libraries_that_are_found_are_captured(tree_of):
    tree = tree_of(
        {f"{MULTIARCH}/libjemalloc.so.2": "", f"{MULTIARCH}/libjemalloc.so": "", "/lib/libc.so.6": ""}
    )
    find_libraries(tree, ALLOCATORS)
    assert list(tree.seen) == [f"{MULTIARCH}/libjemalloc.so.2"]


def test_a_captured_host_does_not_show_this_machines_packages(allocators_of, monkeypatch):
    monkeypatch.setenv("CONDA_PREFIX", "/conda")
    assert allocators_of("/conda/lib/libjemalloc.so.2") == ()


def test_the_live_folders_are_of_the_packages_the_prefix_and_conda(monkeypatch):
    monkeypatch.setattr(
        sys, "path", ["", "/usr/lib/python3.11", "/env/site-packages", "/usr/lib/dist-packages"]
    )
    monkeypatch.setattr(sys, "prefix", "/env")
    monkeypatch.setenv("CONDA_PREFIX", "/conda")
    assert library_folders(Tree("/"))[:4] == [
        "/env/site-packages/cmeel.prefix/lib",
        "/usr/lib/dist-packages/cmeel.prefix/lib",
        "/env/lib",
        "/conda/lib",
    ]


def put_package(folder, content):
    """A library as a wheel of the cmeel project installs it; returns its path."""
    path = folder / "site-packages/cmeel.prefix/lib/libmimalloc.so.3"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_the_environments_own_packages_come_first(tmp_path, monkeypatch):
    path = put_package(tmp_path, elf(machine={"x86_64": 62, "aarch64": 183}[os.uname().machine]))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages"), *sys.path])
    live = Tree("/")
    assert find_libraries(live, ALLOCATORS)[0] == Library("mimalloc", str(path))
    assert str(path) in live.seen


def test_a_library_that_cannot_be_preloaded_is_a_problem_and_not_captured(tmp_path, monkeypatch):
    path = put_package(tmp_path, b"a linker script")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages"), *sys.path])
    live = Tree("/")
    assert str(path) not in [library.path for library in find_libraries(live, ALLOCATORS)]
    assert f"{path}: is not an ELF library" in live.problems
    assert str(path) not in live.seen


def test_a_folder_that_cannot_be_looked_into_is_no_exception(monkeypatch):
    # A name that is too long fails for every user; a folder without permission does not fail for root.
    monkeypatch.setenv("CONDA_PREFIX", "/" + "x" * 300)
    find_libraries(Tree("/"), ALLOCATORS)


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


def test_mapped_libraries_are_listed_once_and_in_order(tree_of):
    lines = [
        "7f00-7f01 r--p 00000000 fd:01 1 /usr/bin/python3.11",
        "7f01-7f02 rw-p 00000000 00:00 0",
        "7f02-7f03 r--p 00000000 fd:01 3 /opt/with space/libz.so.1",
        "7f03-7f04 r-xp 00001000 fd:01 3 /opt/with space/libz.so.1",
        "7f04-7f05 r--p 00000000 fd:01 2 /usr/lib/libc.so.6",
        "7f04-7f05 r--p 00000000 fd:01 2 /home/ada/secret",
        "7f05-7f06 r--p 00000000 fd:01 3 /opt/with space/libz.so.1",
        "7f05-7f06 rw-p 00000000 00:00 0 [stack]",
    ]
    tree = tree_of({"/proc/self/maps": "\n".join(lines)})
    assert read_mapped(tree) == ("/opt/with space/libz.so.1", "/usr/lib/libc.so.6")
    assert tree.seen["/proc/self/maps"] == "\n".join(lines[number] for number in (2, 4, 6))


def test_without_a_map_nothing_is_mapped(tree_of):
    assert read_mapped(tree_of({})) == ()
    assert read_mapped(tree_of({"/proc/self/maps": ".so 00000000 \n"})) == ()


@pytest.mark.parametrize(
    ("mapped", "libc"),
    [
        (("/usr/lib/libm.so.6", "/usr/lib/x86_64-linux-gnu/libc.so.6"), ("glibc", "2.36")),
        (("/lib64/libc-2.28.so",), ("glibc", "2.36")),
        (("/lib/ld-musl-x86_64.so.1",), ("musl", "")),
        (("/lib/libc.musl-x86_64.so.1",), ("musl", "")),
        (("/usr/lib/libcrypt.so.1", "/usr/libc.so.6/libz.so"), ("unknown", "")),
        ((), ("unknown", "")),
    ],
)
def test_the_libc_is_told_by_its_file_name_and_glibc_by_its_version(tree_of, mapped, libc):
    assert read_libc(tree_of({"/probes/glibc_version": "2.36\n"}), mapped) == libc


def test_the_live_libc_is_asked_for_its_version():
    live = Tree("/")
    name, version = read_libc(live, read_mapped(live))
    assert (name, version) == ("musl", "") or version == os.confstr("CS_GNU_LIBC_VERSION").split()[1]

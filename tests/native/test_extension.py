"""hfaccel._arena through Python: arguments, errors, lifetime, and a leak test for each function."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys

import pytest
import torch

from hfaccel import _arena

MIB = 1 << 20


def resident() -> int:
    """Bytes of this process that are present in memory."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 (Path.open allocates more)
        return int(file.read().split()[1]) * resource.getpagesize()


def mappings() -> int:
    with open("/proc/self/maps") as file:  # noqa: PTH123
        return sum(1 for _ in file)


def test_region_is_aligned_and_rounded_up():
    region = _arena.Region(3 * MIB)
    assert region.address % _arena.HUGE_PAGE_SIZE == 0
    assert len(region) == 4 * MIB
    assert memoryview(region).nbytes == 4 * MIB


def test_region_is_writable_and_zero():
    view = memoryview(_arena.Region(1))
    assert view[0] == 0
    view[12345] = 7
    assert view[12345] == 7


@pytest.mark.parametrize("size", [0, -1, 1 << 63, 1 << 64, 1 << 70])
def test_absurd_sizes_name_the_rule_and_the_value(size):
    with pytest.raises(ValueError, match=r"must hold, but got"):
        _arena.Region(size)


@pytest.mark.parametrize("size", ["1", 1.5, None])
def test_sizes_are_integers(size):
    with pytest.raises(TypeError):
        _arena.Region(size)


def test_no_memory_is_an_oserror_with_call_size_and_errno():
    with pytest.raises(OSError, match=r"mmap of \d+ bytes at .*: Cannot allocate memory") as caught:
        _arena.Region(1 << 62)
    assert caught.value.errno == 12


def test_address_space_limit_is_an_oserror():
    """RLIMIT_AS in a process of its own: the limit cannot be raised again."""
    code = (
        "import resource; from hfaccel import _arena\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "try: _arena.Region(2 << 30)\n"
        "except OSError as error: print(error.errno)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "12"


def test_populate_makes_pages_present():
    region = _arena.Region(8 * MIB)
    assert _arena.smaps(region.address, len(region))[0] == 0
    region.populate(0, len(region))
    assert _arena.smaps(region.address, len(region))[0] == len(region)


def test_populate_leaves_no_page_fault():
    region = _arena.Region(8 * MIB)
    region.populate(0, len(region))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memoryview(region)[::4096] = bytes(len(region) // 4096)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 10


@pytest.mark.parametrize(("offset", "size"), [(0, 2 * MIB + 1), (2 * MIB + 1, 0), (2 * MIB, 1)])
def test_populate_stays_inside(offset, size):
    with pytest.raises(ValueError, match=r"offset \+ size <= 2097152` must hold, but got"):
        _arena.Region(MIB).populate(offset, size)


def test_huge_pages_are_given_where_the_kernel_has_them():
    mode = open("/sys/kernel/mm/transparent_hugepage/enabled").read()  # noqa: PTH123, SIM115
    if "[never]" in mode:
        pytest.skip("transparent huge pages are off on this machine")
    region = _arena.Region(16 * MIB)
    assert region.advise_error == 0
    region.populate(0, len(region))
    assert _arena.smaps(region.address, len(region))[1] == len(region)
    small = _arena.Region(16 * MIB, huge=False)
    small.populate(0, len(small))
    if "[madvise]" in mode:
        assert _arena.smaps(small.address, len(small))[1] == 0


def test_neighbouring_regions_are_counted_apart():
    """The kernel merges equal neighbours into one line of smaps; names of their own keep them apart."""
    regions = [_arena.Region(2 * MIB, huge=False) for _ in range(4)]
    regions[1].populate(0, 2 * MIB)
    present = [_arena.smaps(region.address, len(region))[0] for region in regions]
    assert present == [0, 2 * MIB, 0, 0]


def test_a_tensor_keeps_its_region():
    tensor = torch.frombuffer(_arena.Region(4 * MIB), dtype=torch.float32)
    gc.collect()
    tensor.fill_(3)
    assert tensor.sum() == 3 * MIB


def test_malloc_owner_names_a_library():
    assert os.path.basename(_arena.malloc_owner()).startswith("lib")  # noqa: PTH119


def test_mallopt_accepts_and_refuses():
    assert _arena.mallopt(-1, 64 * MIB) is True  # M_TRIM_THRESHOLD
    assert _arena.mallopt(123456, 1) in (True, False)  # glibc ignores unknown options
    with pytest.raises(TypeError):
        _arena.mallopt("trim", 1)


def use_region():
    region = _arena.Region(MIB)
    region.populate(0, MIB)


LEAK_TESTS = {
    "Region": use_region,
    "smaps": lambda: _arena.smaps(4096, 4096),
    "malloc_owner": _arena.malloc_owner,
    "mallopt": lambda: _arena.mallopt(-1, 64 * MIB),
}


def test_every_function_has_a_leak_test():
    public = {name for name in vars(_arena) if callable(getattr(_arena, name)) and not name.startswith("_")}
    assert public == set(LEAK_TESTS)


@pytest.mark.parametrize("name", LEAK_TESTS)
def test_nothing_leaks(name):
    call = LEAK_TESTS[name]
    for _ in range(50):
        call()
    gc.collect()
    before, lines = resident(), mappings()
    for _ in range(500):
        call()
    gc.collect()
    # 500 leaked regions are 1000 MiB and 500 lines, 500 leaked strings of a path about 40 KiB more
    # than what the allocator's own pages account for.
    assert resident() - before < MIB
    assert mappings() - lines < 10


@pytest.mark.parametrize("call", [lambda: _arena.Region(0), lambda: _arena.Region(1 << 62)])
def test_failures_leak_nothing(call):
    lines = mappings()
    for _ in range(200):
        with pytest.raises((ValueError, OSError)):
            call()
    assert mappings() - lines < 10

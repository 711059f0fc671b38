"""Reading back what took effect."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hfaccel import native
from hfaccel.apply.verify import allocator_in_use, openmp_runtimes, verify


class Owner:
    """Stands in for the extension: malloc belongs to `path`, or cannot be found."""

    def __init__(self, path=None):
        self.path = path

    def malloc_owner(self):
        if self.path is None:
            raise OSError(2, "No such file or directory")
        return self.path

    def saved_state(self):
        raise OSError(38, "xgetbv: Function not implemented")

    requestable_state = saved_state


def findings():
    return {finding.subject: finding for finding in verify()}


def test_every_finding_says_where_it_was_read():
    found = verify()
    assert all(finding.value and finding.source for finding in found)
    assert len({finding.subject for finding in found}) == len(found)
    assert found[0].to_dict() == {
        "subject": found[0].subject,
        "value": found[0].value,
        "source": found[0].source,
    }


def test_the_affinity_is_the_real_one():
    mask = os.sched_getaffinity(0)
    assert findings()["affinity"].value == ",".join(map(str, sorted(mask)))
    try:
        os.sched_setaffinity(0, {max(mask)})
        assert findings()["affinity"].value == str(max(mask))
    finally:
        os.sched_setaffinity(0, mask)


def test_threads_are_torchs():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert findings()["threads"].value == "3"
    finally:
        torch.set_num_threads(before)


def test_without_torch_nothing_is_said_of_its_threads_and_it_is_not_imported():
    code = (
        "import sys; from hfaccel.apply.verify import verify\n"
        "assert 'threads' not in [finding.subject for finding in verify()]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_allocator_is_named_by_its_file(monkeypatch):
    monkeypatch.setattr(native, "arena", Owner("/some/where/libmimalloc.so.3"))
    assert allocator_in_use() == findings()["allocator"].value == "libmimalloc.so.3"


def test_an_allocator_that_cannot_be_found_is_unknown(monkeypatch):
    monkeypatch.setattr(native, "arena", Owner())
    assert allocator_in_use() == "unknown (No such file or directory)"
    monkeypatch.setattr(native, "arena", None)
    assert allocator_in_use() == "unknown"


@pytest.mark.skipif(native.arena is None, reason="the native part is missing")
def test_the_allocator_of_this_process_is_mapped_into_it():
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        assert allocator_in_use() in maps.read()


@pytest.mark.parametrize(
    ("mapped", "expected"),
    [
        ((), ""),
        (("/lib/libm.so.6", "/x/libgompish/liba.so"), ""),
        (("/lib/libgomp.so.1",), "libgomp.so.1"),
        (("/lib/libgomp-24e2ab19.so.1.0.0",), "libgomp-24e2ab19.so.1.0.0"),
        (("/a/libiomp5.so", "/b/libomp.so"), "libiomp5.so, libomp.so"),
        (("/a/libgomp.so.1", "/b/libgomp.so.1"), "libgomp.so.1, libgomp.so.1"),
    ],
)
def test_openmp_runtimes_are_told_by_their_file_names(mapped, expected):
    assert openmp_runtimes(mapped) == expected

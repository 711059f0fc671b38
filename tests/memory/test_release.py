"""release(): memory that the allocator keeps goes back to the system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hfaccel.host import read_host

RUN = str(Path(sys.executable).with_name("hfaccel-run"))
PROGRAM = """
import sys
import torch
import hfaccel
if "configure" in sys.argv:
    hfaccel.configure()
def resident():
    line = next(line for line in open("/proc/self/smaps_rollup") if line.startswith("Rss:"))
    return int(line.split()[1]) // 1024
def work():
    return [torch.ones(1 << 20) for _ in range(50)]  # 200 MiB
before = resident()
del (kept := [work()])[:]
after = resident()
given = hfaccel.memory.release() >> 20
work()
print(after - before, given, resident() - before)
"""


def mib(command, *arguments):
    done = subprocess.run([*command, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return map(int, done.stdout.split())


def test_what_configure_lets_glibc_keep_is_given_back():
    kept, given, _ = mib([sys.executable], "configure")
    assert kept > 150, "freed memory is kept"
    assert given > 150, "until it is released"


@pytest.mark.parametrize("library", read_host().allocators, ids=lambda library: library.kind)
def test_what_a_preloaded_allocator_keeps_is_given_back(library):
    kept, given, _ = mib([RUN, "--memory-allocator", library.kind])
    assert kept > 150
    assert given > 150


def test_without_anything_kept_nothing_breaks():
    _, given, _ = mib([sys.executable])
    assert given >= 0

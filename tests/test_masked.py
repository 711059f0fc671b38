"""Libraries that see a CPU with AVX2 and no more (benchmarks/masked.py)."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys

import pytest

from masked import CPUID, build_handler, masked

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not (shutil.which("cc") and shutil.which("objdump")),
    reason="needs an x86-64 machine with a C compiler and binutils",
)
LIBRARY = r"""
#include <cpuid.h>
const unsigned char alike[] = {0x0f, 0xa2, 0x0f, 0xa2}; /* bytes that are no instruction */
void ask(unsigned leaf, unsigned subleaf, unsigned told[4])
{
  __cpuid_count(leaf, subleaf, told[0], told[1], told[2], told[3]);
}
unsigned immediate(unsigned x) { return x + 0x00a20f00; }
"""
ASK = """
import ctypes, json, sys
told = (ctypes.c_uint32 * 4)()
asked = ctypes.CDLL(sys.argv[1]).ask
def ask(leaf, subleaf):
    asked(leaf, subleaf, told)
    return list(told)
print(json.dumps([ask(0, 0), ask(1, 0)[2], ask(7, 0), ask(7, 1)]))
"""
CRASH = """
import ctypes, mmap
page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes([0xD6]))  # no instruction in 64-bit mode
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
AVX512 = 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31  # F, DQ, BW and VL in EBX of leaf 7
AVX2, AVX_AND_FMA = 1 << 5, 1 << 28 | 1 << 12


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    (folder / "asks.c").write_text(LIBRARY)
    plain = folder / "asks.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", folder / "asks.c", "-o", plain], check=True)
    (folder / "masked.so.1").write_bytes(masked(plain))
    build_handler(folder)
    return folder


def ask(folder, name):
    environment = {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", ASK, str(folder / name)]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(told.stdout)


def test_a_masked_library_sees_avx2_and_no_more(library):
    _, first, seven, one = ask(library, "masked.so.1")
    _, plain_first, plain_seven, _ = ask(library, "asks.so")
    assert not seven[1] & AVX512 and not one[0] & (1 << 4 | 1 << 5)
    assert seven[1] & AVX2 == plain_seven[1] & AVX2
    assert first & AVX_AND_FMA == plain_first & AVX_AND_FMA


def test_all_else_is_told_as_it_is(library):
    assert ask(library, "masked.so.1")[0] == ask(library, "asks.so")[0]  # the vendor's name


def test_only_instructions_are_replaced(library):
    plain, copy = ((library / name).read_bytes() for name in ("asks.so", "masked.so.1"))
    assert len(plain) == len(copy) and plain != copy
    assert copy.count(CPUID * 2) == plain.count(CPUID * 2) >= 1


def test_another_illegal_instruction_still_ends_the_process(library):
    done = subprocess.run([sys.executable, "-c", CRASH], env={"PYTHONPATH": str(library)}, check=False)
    assert done.returncode == -4  # SIGILL

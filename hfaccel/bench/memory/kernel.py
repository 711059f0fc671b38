"""Whether this kernel places odd-sized anonymous mappings on huge-page boundaries.

Linux 6.7 (efa7df3e3bb5) aligned every anonymous mapping of 2 MiB or more to 2 MiB; 6.12 and 6.11.7
(d4148aeab412) do so only where the size is a multiple of 2 MiB. Vendors carry either commit in kernels of any
version, so the version says nothing: the probe makes mappings and reads their addresses.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import Literal, NamedTuple

from hfaccel.bench.memory.addresses import HUGE_PAGE, PAGE

Verdict = Literal["old", "new", "none", "unclear"]
PROBES = 6
MEANINGS: dict[Verdict, str] = {
    "old": "aligns every anonymous mapping of 2 MiB or more (6.7, before d4148aeab412): odd sizes leave gaps",
    "new": "aligns anonymous mappings whose size is a multiple of 2 MiB, and no others (d4148aeab412)",
    "none": "aligns no anonymous mapping (before efa7df3e3bb5, or built without huge pages)",
    "unclear": "places mappings in no way that is known",
}


class Alignment(NamedTuple):
    """What a kernel does, and how many of PROBES mappings of each kind began on a 2 MiB boundary."""

    verdict: Verdict
    odd: int  # of 2 MiB + 4 KiB
    multiples: int  # of 2 MiB, with another page between each two

    def __str__(self) -> str:
        counts = f"{self.odd} of {PROBES} odd sizes, {self.multiples} of {PROBES} multiples of 2 MiB"
        return f"{MEANINGS[self.verdict]}; aligned: {counts}"


def probe_alignment() -> Alignment:
    """Map without hints, and keep all mappings until the end, so that each has its own address."""
    kept: list[mmap.mmap] = []
    odd = [_map(HUGE_PAGE + PAGE, kept) for _ in range(PROBES)]
    multiples = []
    for _ in range(PROBES):
        _map(PAGE, kept)  # otherwise each would begin where the last one did, modulo 2 MiB
        multiples.append(_map(HUGE_PAGE, kept))
    return judge(odd, multiples)


def judge(odd: Sequence[int], multiples: Sequence[int]) -> Alignment:
    """Holes between other mappings may take one or two of the probes, so most must agree, not all."""
    counts = [sum(address % HUGE_PAGE == 0 for address in addresses) for addresses in (odd, multiples)]
    most, few = PROBES - 1, 1
    if counts[0] >= most:
        verdict: Verdict = "old"
    elif counts[0] > few:
        verdict = "unclear"
    elif counts[1] >= most:
        verdict = "new"
    else:
        verdict = "none" if counts[1] <= few else "unclear"
    return Alignment(verdict, *counts)


def _map(size: int, kept: list[mmap.mmap]) -> int:
    """Address of a new anonymous mapping, which is private: Python's default is shared memory."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    kept.append(memory)
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))

"""Which bytes of this process are on huge pages: exact to the page where the kernel says, else by mapping.

smaps has sums for whole mappings, and the buffers may be a few percent of an allocator's mapping. The ioctl
PAGEMAP_SCAN (Linux 6.7) names the pages themselves, and needs no privilege.
"""

from __future__ import annotations

import fcntl
import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hfaccel import native
from hfaccel.bench.memory.addresses import PAGE, Buffer
from hfaccel.memory.coverage import merge

Range = tuple[int, int]  # first address, one past the last

# linux/fs.h: struct pm_scan_arg is twelve 64-bit numbers, struct page_region three.
PAGEMAP_SCAN = 0xC0606610
ARGUMENT = struct.Struct("12Q")
PAGE_IS_HUGE = 1 << 6
REGIONS = 256  # per call


class Huge(NamedTuple):
    """Buffers with their shares."""

    buffers: list[Buffer]
    source: str  # of the shares: "PAGEMAP_SCAN", "smaps" or ""
    problem: str = ""  # why a better source could not be read


def huge_shares(ranges: Iterable[Range], touched: bool) -> Huge:
    """The share of each range (address, size) that lies on huge pages, in order of address.

    `touched`: all ranges were written, so a share out of smaps is a share of the mapping's resident pages.
    Never raises for what the system refuses.
    """
    ordered = sorted(ranges)
    try:
        pages = list(huge_ranges([(address, address + size) for address, size in ordered]))
        shares = [_overlap(address, address + size, pages) / max(1, size) for address, size in ordered]
        return Huge(_buffers(ordered, shares), "PAGEMAP_SCAN")
    except OSError as error:
        return by_mapping(ordered, touched, f"PAGEMAP_SCAN: {os.strerror(error.errno or 0)}")


def huge_ranges(ranges: Sequence[Range]) -> Iterator[Range]:
    """The parts of these ranges that lie on huge pages of 2 MiB, transparent or explicit."""
    file = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end in merge(ranges):
            yield from _scan(file, start // PAGE * PAGE, -(-end // PAGE) * PAGE)
    finally:
        os.close(file)


def _scan(file: int, start: int, end: int) -> Iterator[Range]:
    found = array("Q", bytes(24 * REGIONS))
    while start < end:
        vector, _ = found.buffer_info()
        wanted = (0, PAGE_IS_HUGE, 0, PAGE_IS_HUGE)  # inverted, all of, any of, returned
        argument = bytearray(ARGUMENT.pack(ARGUMENT.size, 0, start, end, 0, vector, REGIONS, 0, *wanted))
        count = fcntl.ioctl(file, PAGEMAP_SCAN, argument)
        yield from ((found[3 * index], found[3 * index + 1]) for index in range(count))
        start = ARGUMENT.unpack(argument)[4]  # where the kernel stopped


def _overlap(start: int, end: int, ranges: Iterable[Range]) -> int:
    return sum(max(0, min(end, high) - max(start, low)) for low, high in ranges)


def by_mapping(ordered: Sequence[Range], touched: bool, problem: str) -> Huge:
    """Shares out of smaps, as if a mapping's huge pages were spread evenly over the mapping."""
    try:
        shares = {}
        for start, end in merge((address, address + size) for address, size in ordered):
            resident, huge = read_smaps(start, end - start)
            whole = resident if touched else end - start
            shares[start] = min(1.0, huge / whole) if whole else 0.0
    except OSError as error:
        problems = f"{problem}; {error.args[-1]}"
        return Huge([Buffer(*pair) for pair in ordered], "", problems)
    starts = sorted(shares)
    found = [shares[max(start for start in starts if start <= address)] for address, _ in ordered]
    return Huge(_buffers(ordered, found), "smaps", problem)


def read_smaps(address: int, size: int) -> tuple[int, int]:
    """The resident bytes of a range, and its bytes on huge pages."""
    if native.arena is None:
        raise OSError(0, native.MISSING)
    resident, anonymous, file = native.arena.smaps(address, size)
    return resident, anonymous + file


def _buffers(ordered: Sequence[Range], shares: Sequence[float]) -> list[Buffer]:
    return [Buffer(*pair, share) for pair, share in zip(ordered, shares, strict=True)]

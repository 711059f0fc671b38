"""Where buffers lie: alignment and gaps. Pure; addresses and sizes in bytes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypedDict

HUGE_PAGE = 2 << 20
PAGE = 4096


class Buffer(NamedTuple):
    """A buffer, and the share (0 to 1) of its bytes on huge pages; None where that cannot be read."""

    address: int
    size: int
    huge: float | None = None

    @property
    def end(self) -> int:
        return self.address + self.size


class Gaps(TypedDict):
    median: int | None
    largest: int | None
    adjacent: float | None  # share of gaps below 4 KiB, which huge pages can cover


class Layout(TypedDict):
    buffers: int
    bytes: int
    span: int
    aligned: float | None  # share that begins in the first 4 KiB of a 2 MiB page, after a header
    gaps: Gaps


def layout(buffers: Iterable[Buffer]) -> Layout:
    ordered = sorted(buffers)
    if not ordered:
        return {"buffers": 0, "bytes": 0, "span": 0, "aligned": None, "gaps": gap_summary([])}
    return {
        "buffers": len(ordered),
        "bytes": sum(buffer.size for buffer in ordered),
        "span": ordered[-1].end - ordered[0].address,
        "aligned": sum(buffer.address % HUGE_PAGE < PAGE for buffer in ordered) / len(ordered),
        "gaps": gap_summary(gaps(ordered)),
    }


def gaps(ordered: Sequence[Buffer]) -> list[int]:
    """Bytes between each buffer and the next; 0 where they touch, or share memory."""
    return [max(0, after.address - before.end) for before, after in pairwise(ordered)]


def gap_summary(sizes: Sequence[int]) -> Gaps:
    if not sizes:
        return {"median": None, "largest": None, "adjacent": None}
    return {
        "median": int(statistics.median(sizes)),
        "largest": max(sizes),
        "adjacent": sum(size < PAGE for size in sizes) / len(sizes),
    }


def covered(buffers: Iterable[Buffer]) -> float | None:
    """The share of all bytes that lies on huge pages; None where some buffer's share is unknown."""
    known = list(buffers)
    total = sum(buffer.size for buffer in known)
    huge = [buffer.size * buffer.huge for buffer in known if buffer.huge is not None]
    return sum(huge) / total if total and len(huge) == len(known) else None


def readable(count: float | None) -> str:
    """Bytes in a few characters: 16 B, 4.0 KiB, 1.5 GiB."""
    if count is None:
        return "-"
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, max(0, (int(count).bit_length() - 1) // 10))
    return f"{count:.0f} B" if power == 0 else f"{count / 1024**power:.3g} {units[power]}"

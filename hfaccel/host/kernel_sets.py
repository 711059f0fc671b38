"""The instruction sets for which hfaccel has kernels, and which of them a processor can run.

A set is a row here and a row in native/CMakeLists.txt. Each is an extension of its own,
hfaccel._kernels_NAME, which cannot be imported where the CPU lacks one of its instructions. Another package
calls `register` before hfaccel first reads the host.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

MAX_ISA = "HFACCEL_MAX_ISA"
NONE = "none"


class KernelSet(NamedTuple):
    name: str
    family: str  # the name of the set and its variants in HFACCEL_MAX_ISA
    flags: tuple[str, ...]  # of the processor (host.processor.ISA_FLAGS)
    package: str = "hfaccel"  # that has the extension

    @property
    def module(self) -> str:
        return f"{self.package}._kernels_{self.name}"


AVX512_BF16 = ("avx512f", "avx512_vnni", "avx512_bf16")
NEON_BF16 = ("asimd", "asimddp", "bf16", "i8mm")
# Of each architecture, the best set comes first.
KERNEL_SETS = [
    KernelSet("amx", "amx", ("amx_tile", "amx_bf16", "amx_int8", *AVX512_BF16)),
    KernelSet("avx512_bf16", "avx512", AVX512_BF16),
    KernelSet("avx512_vnni", "avx512", AVX512_BF16[:2]),
    KernelSet("avx512_fp32", "avx512", AVX512_BF16[:1]),
    KernelSet("avx2_vnni", "avx2", ("avx2", "avx_vnni")),
    KernelSet("avx2_fp32", "avx2", ("avx2",)),
    KernelSet("neon_bf16", "neon", NEON_BF16),
    KernelSet("neon_dot", "neon", NEON_BF16[:2]),
    KernelSet("neon_fp32", "neon", NEON_BF16[:1]),
]


def register(row: KernelSet) -> None:
    """Adds a set of another package, better than those that are known. Raises ValueError if the name is
    taken."""
    if row.name in _names():
        raise ValueError(f"the name of a kernel set must be new, but {row.name!r} is one; choose another")
    KERNEL_SETS.insert(0, row)


def module_of(name: str) -> str:
    """The extension with the kernels of the set of this name."""
    return next(row.module for row in KERNEL_SETS if row.name == name)


def usable_sets(flags: Collection[str], cap: str) -> tuple[str, ...]:
    """Names of the sets that a processor with these flags can run, the best first.

    `cap`: the largest set that may be used, as the name of a set or a family, or "none"; "" for any. An
    unknown name is ignored (cap_problem)."""
    if cap == NONE:
        return ()
    rows = KERNEL_SETS
    if not cap_problem(cap) and cap:
        first = next(i for i, row in enumerate(rows) if cap in (row.name, row.family))
        rows = rows[first:]
    return tuple(row.name for row in rows if set(row.flags) <= set(flags))


def cap_problem(cap: str) -> str:
    """Why this value of HFACCEL_MAX_ISA is ignored; "" where it is valid or empty."""
    known = (*dict.fromkeys(row.family for row in KERNEL_SETS), *_names(), NONE)
    if cap in ("", *known):
        return ""
    names = ", ".join(dict.fromkeys(known))
    return f"{MAX_ISA} must be one of {names}, but is {cap!r}: it is ignored"


def _names() -> list[str]:
    return [row.name for row in KERNEL_SETS]

"""The processor, and which of its instructions programs can use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from hfaccel import native
from hfaccel.host.facts import Processor
from hfaccel.host.kernel_sets import MAX_ISA, cap_problem, usable_sets
from hfaccel.host.tree import Tree, is_number
from hfaccel.portable import machine


class Flag(NamedTuple):
    """An instruction set extension, by the kernel's name for it."""

    name: str
    state: int  # bits of XCR0; without them a switch of threads loses the registers
    level: int  # position in ONEDNN_LEVELS from which on oneDNN uses the extension


AVX, AVX512, AMX = 0b110, 0b1110_0110, 0b11 << 17
# Values of ONEDNN_MAX_CPU_ISA; each includes those before it (oneDNN, "CPU dispatcher control").
ONEDNN_LEVELS = (
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
    "AVX512_CORE_BF16",
    "AVX512_CORE_FP16",
    "AVX512_CORE_AMX",
    "AVX512_CORE_AMX_FP16",
)
ONEDNN_ALIASES = {
    "AVX10_1_512": "AVX512_CORE_FP16",
    "AVX10_1_512_AMX": "AVX512_CORE_AMX",
    "AVX10_1_512_AMX_FP16": "AVX512_CORE_AMX_FP16",
}
ISA_FLAGS = (
    Flag("avx2", AVX, 2),
    Flag("avx_vnni", AVX, 3),
    Flag("avx512f", AVX512, 5),
    Flag("avx512_vnni", AVX512, 6),
    Flag("avx512_bf16", AVX512, 7),
    Flag("avx512_fp16", AVX512, 8),
    Flag("amx_tile", AMX, 9),
    Flag("amx_bf16", AMX, 9),
    Flag("amx_int8", AMX, 9),
    Flag("amx_fp16", AMX, 10),
    Flag("asimd", 0, 0),  # Arm from here on
    Flag("asimddp", 0, 0),
    Flag("sve", 0, 0),
    Flag("sve2", 0, 0),
    Flag("bf16", 0, 0),
    Flag("i8mm", 0, 0),
)

# (vendor, family): rows of (first model, last model, first stepping, last stepping, codename).
ANY = 0xFF
CODENAMES = {
    ("GenuineIntel", 6): (
        (85, 85, 0, 4, "Skylake"),
        (85, 85, 5, 7, "Cascade Lake"),
        (85, 85, 8, 15, "Cooper Lake"),
        (106, 106, 0, ANY, "Ice Lake"),
        (108, 108, 0, ANY, "Ice Lake"),
        (143, 143, 0, ANY, "Sapphire Rapids"),
        (207, 207, 0, ANY, "Emerald Rapids"),
        (173, 174, 0, ANY, "Granite Rapids"),
        (175, 175, 0, ANY, "Sierra Forest"),
        (151, 151, 0, ANY, "Alder Lake"),
        (154, 154, 0, ANY, "Alder Lake"),
        (183, 183, 0, ANY, "Raptor Lake"),
        (186, 186, 0, ANY, "Raptor Lake"),
        (63, 63, 0, ANY, "Haswell"),
        (79, 79, 0, ANY, "Broadwell"),
    ),
    ("AuthenticAMD", 0x17): ((0x00, 0x2F, 0, ANY, "Zen"), (0x30, 0xFF, 0, ANY, "Zen 2")),
    ("AuthenticAMD", 0x19): (
        (0x00, 0x0F, 0, ANY, "Zen 3"),
        (0x10, 0x1F, 0, ANY, "Zen 4"),
        (0x20, 0x5F, 0, ANY, "Zen 3"),
        (0x60, 0xAF, 0, ANY, "Zen 4"),
    ),
    ("AuthenticAMD", 0x1A): ((0x00, 0xFF, 0, ANY, "Zen 5"),),
}
ARM_CORES = {
    (0x41, 0xD0C): "Neoverse N1",  # Graviton 2, Ampere Altra
    (0x41, 0xD40): "Neoverse V1",  # Graviton 3
    (0x41, 0xD49): "Neoverse N2",
    (0x41, 0xD4F): "Neoverse V2",  # Graviton 4, NVIDIA Grace
}
AMX_REQUESTABLE = 1 << 18  # the tile data, for which a program must ask the kernel


def read_processor(tree: Tree) -> Processor:
    fields = _first_processor(tree)
    family, model, stepping = (_number(fields, name) for name in ("cpu family", "model", "stepping"))
    arm = "CPU implementer" in fields
    listed = set(fields.get("Features" if arm else "flags", "").split())
    usable, withheld = _usable(tree, [flag for flag in ISA_FLAGS if flag.name in listed])
    vendor = "ARM" if arm else fields.get("vendor_id", "")
    cap = tree.probe(MAX_ISA, lambda: os.environ.get(MAX_ISA, "")).strip().lower()
    if cap_problem(cap):
        tree.problems.append(cap_problem(cap))
    return Processor(
        architecture=tree.probe("machine", machine),
        vendor=vendor,
        model_name=fields.get("model name", ""),
        codename=_arm_core(fields) if arm else codename(vendor, family, model, stepping),
        family=family,
        model=model,
        stepping=stepping,
        microcode=fields.get("microcode", ""),
        isa=usable,
        withheld=withheld,
        kernel_sets=usable_sets(usable, cap),
        kernel_cap=cap,
    )


def codename(vendor: str, family: int, model: int, stepping: int) -> str:
    """The name of the processor's core; "" for a processor that is not in the table."""
    for first, last, low, high, name in CODENAMES.get((vendor, family), ()):
        if first <= model <= last and low <= stepping <= high:
            return name
    return ""


def cpuinfo(tree: Tree) -> list[str]:
    """/proc/cpuinfo: all lines of the first processor, and the first line of every other, to count them."""
    seen = 0

    def keep(line: str) -> bool:
        nonlocal seen
        seen += line.startswith("processor")
        return seen <= 1 or line.startswith("processor")

    return tree.lines("/proc/cpuinfo", keep)


def _first_processor(tree: Tree) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in cpuinfo(tree):
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    return fields


def _usable(tree: Tree, listed: list[Flag]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the flags that programs can use, and "flag: reason" for the others."""
    saved = _mask(tree.probe("xcr0", lambda: _ask(lambda arena: arena.saved_state())))
    requestable = _mask(tree.probe("xcomp", lambda: _ask(lambda arena: arena.requestable_state())))
    cap = tree.probe("ONEDNN_MAX_CPU_ISA", lambda: os.environ.get("ONEDNN_MAX_CPU_ISA", "")).upper()
    level = ONEDNN_ALIASES.get(cap, cap)
    highest = ONEDNN_LEVELS.index(level) if level in ONEDNN_LEVELS else len(ONEDNN_LEVELS)
    usable, withheld = [], []
    for flag in listed:
        if saved is not None and saved & flag.state != flag.state:
            withheld.append(f"{flag.name}: the system does not save its registers (XCR0 is {saved:#x})")
        elif flag.state == AMX and requestable is not None and not requestable & AMX_REQUESTABLE:
            withheld.append(f"{flag.name}: the kernel or the sandbox refuses AMX to programs")
        elif flag.level > highest:
            withheld.append(f"{flag.name}: ONEDNN_MAX_CPU_ISA={cap}")
        else:
            usable.append(flag.name)
    return tuple(usable), tuple(withheld)


def _ask(question: Callable[[native.Arena], int]) -> str:
    """A mask in hexadecimal; 0 where the kernel refuses to answer, "" without the native part."""
    if native.arena is None:
        return ""
    try:
        return f"{question(native.arena):#x}"
    except OSError:
        return "0x0"


def _mask(text: str) -> int | None:
    """None where the mask is unknown: then the kernel's flags count as usable."""
    digits = text.removeprefix("0x")
    if not digits or len(digits) > 16 or set(digits.lower()) - set("0123456789abcdef"):
        return None
    return int(digits, 16)


def _arm_core(fields: dict[str, str]) -> str:
    implementer, part = (_mask(fields.get(name, "")) or 0 for name in ("CPU implementer", "CPU part"))
    return ARM_CORES.get((implementer, part), "")


def _number(fields: dict[str, str], name: str) -> int:
    text = fields.get(name, "")
    return int(text) if is_number(text) else 0

"""The processor: its name among its relatives, and which instructions programs can really use."""

from __future__ import annotations

import pytest
from trees import FORMS, tree_maker

from hfaccel import native
from hfaccel.host.processor import ISA_FLAGS, ONEDNN_LEVELS, codename, read_processor
from hfaccel.host.tree import Tree

EVERY_X86 = "avx2 avx_vnni avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_bf16 amx_int8 amx_fp16"
X86 = EVERY_X86.split()
ARM = "asimd asimddp sve sve2 bf16 i8mm"


@pytest.fixture(params=FORMS)
def tree_of(request, tmp_path):
    return tree_maker(request.param, tmp_path)


@pytest.fixture
def processor_of(tree_of):
    """Of /proc/cpuinfo and the answers to probes."""

    def read(cpuinfo, **probes):
        answers = {f"/probes/{name}": answer for name, answer in probes.items()}
        return read_processor(tree_of({"/proc/cpuinfo": cpuinfo, **answers}))

    return read


# Its description


def test_the_first_processor_describes_all(processor_of):
    first = (
        "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon : 8480+\nflags\t: fpu avx2 amx_tile\n"
    )
    second = "\nprocessor\t: 1\nvendor_id\t: Other\nmodel name\t: Other\nflags\t: avx512f\n"
    processor = processor_of(first + second)
    assert (processor.vendor, processor.model_name) == ("GenuineIntel", "Xeon : 8480+")
    assert processor.isa == ("avx2", "amx_tile")
    assert processor.has("amx_tile")
    assert not processor.has("avx512f")


def test_of_the_other_processors_only_the_number_is_captured(tree_of):
    blocks = [f"processor\t: {number}\napicid\t: {number}\n\n" for number in range(3)]
    tree = tree_of({"/proc/cpuinfo": "".join(blocks)})
    read_processor(tree)
    assert tree.seen["/proc/cpuinfo"] == f"{blocks[0]}processor\t: 1\nprocessor\t: 2"


def test_all_fields_are_read(processor_of):
    text = "vendor_id : GenuineIntel\ncpu family : 6\nmodel : 143\nstepping : 8\nmicrocode : 0x2b\n"
    processor = processor_of(text, machine="x86_64")
    assert processor[:8] == ("x86_64", "GenuineIntel", "", "Sapphire Rapids", 6, 143, 8, "0x2b")


def test_an_unknown_processor_has_neutral_values(tree_of):
    assert read_processor(tree_of({})) == ("", "", "", "", 0, 0, 0, "", (), (), (), "")


@pytest.mark.parametrize("number", ["unknown", "", "-1", "0x8", "9" * 5000])
def test_a_number_that_is_none_is_0(processor_of, number):
    # gVisor calls the stepping "unknown".
    processor = processor_of(f"vendor_id : GenuineIntel\ncpu family : 6\nmodel : 143\nstepping : {number}\n")
    assert (processor.stepping, processor.codename) == (0, "Sapphire Rapids")


def test_arm_has_fields_of_its_own(processor_of):
    text = f"processor : 0\nFeatures : fp {ARM}\nCPU implementer : 0x41\nCPU part : 0xd40\n"
    processor = processor_of(text, machine="aarch64", xcr0="0x0", xcomp="0x0")
    assert processor[:4] == ("aarch64", "ARM", "", "Neoverse V1")
    assert (processor.isa, processor.withheld) == (tuple(ARM.split()), ())


# Code names


INTEL = {
    **{63: "Haswell", 79: "Broadwell", 106: "Ice Lake", 108: "Ice Lake", 143: "Sapphire Rapids"},
    **{151: "Alder Lake", 154: "Alder Lake", 183: "Raptor Lake", 186: "Raptor Lake"},
    **{173: "Granite Rapids", 174: "Granite Rapids", 175: "Sierra Forest", 207: "Emerald Rapids"},
}


@pytest.mark.parametrize("stepping", [0, 1, 8, 15])
def test_the_model_tells_intels_code_name(stepping):
    models = [model for model in range(256) if model != 85]
    found = {model: codename("GenuineIntel", 6, model, stepping) for model in models}
    assert {model: name for model, name in found.items() if name} == INTEL


def test_the_stepping_tells_intels_model_85():
    names = [codename("GenuineIntel", 6, 85, stepping) for stepping in range(17)]
    assert names == ["Skylake"] * 5 + ["Cascade Lake"] * 3 + ["Cooper Lake"] * 8 + [""]


@pytest.mark.parametrize(
    ("family", "model", "name"),
    [
        (0x17, 0x01, "Zen"),  # Naples
        (0x17, 0x2F, "Zen"),
        (0x17, 0x30, "Zen 2"),
        (0x17, 0x31, "Zen 2"),  # Rome
        (0x17, 0xFF, "Zen 2"),
        (0x19, 0x01, "Zen 3"),  # Milan
        (0x19, 0x0F, "Zen 3"),
        (0x19, 0x10, "Zen 4"),
        (0x19, 0x11, "Zen 4"),  # Genoa
        (0x19, 0x1F, "Zen 4"),
        (0x19, 0x20, "Zen 3"),
        (0x19, 0x5F, "Zen 3"),
        (0x19, 0x60, "Zen 4"),
        (0x19, 0xA0, "Zen 4"),  # Bergamo
        (0x19, 0xAF, "Zen 4"),
        (0x19, 0xB0, ""),
        (0x1A, 0x02, "Zen 5"),  # Turin
        (0x1A, 0xFF, "Zen 5"),
        (0x1B, 0x00, ""),
        (0x15, 0x02, ""),
    ],
)
@pytest.mark.parametrize("stepping", [0, 1, 255])
def test_family_and_model_tell_amds_code_name(family, model, name, stepping):
    assert codename("AuthenticAMD", family, model, stepping) == name


def test_another_vendors_numbers_mean_something_else():
    assert codename("AuthenticAMD", 6, 143, 8) == ""
    assert codename("GenuineIntel", 0x19, 0x11, 1) == ""
    assert codename("HygonGenuine", 0x17, 0x01, 1) == ""


@pytest.mark.parametrize(
    ("implementer", "part", "name"),
    [
        ("0x41", "0xd0c", "Neoverse N1"),
        ("0x41", "0xd40", "Neoverse V1"),
        ("0x41", "0xd49", "Neoverse N2"),
        ("0x41", "0xd4f", "Neoverse V2"),
        ("0xc0", "0xd40", ""),
        ("0x41", "0xd4", ""),
        ("", "", ""),
        ("noise", "noise", ""),
    ],
)
def test_implementer_and_part_tell_arms_code_name(processor_of, implementer, part, name):
    assert processor_of(f"CPU implementer : {implementer}\nCPU part : {part}\n").codename == name


# Flags


def test_flags_are_whole_words_in_a_fixed_order(processor_of):
    every = [flag.name for flag in ISA_FLAGS]
    assert processor_of(f"flags : {' '.join(reversed(every))} avx512f_not\n").isa == tuple(every)
    assert processor_of("flags : xavx2 avx512f_not AVX2\n").isa == ()


def usable(processor_of, flags=EVERY_X86, **probes):
    """Names of the flags that can be used; the others must be withheld for a reason."""
    processor = processor_of(f"flags : {flags}\n", **probes)
    withheld = [line.partition(": ")[0] for line in processor.withheld]
    assert sorted([*processor.isa, *withheld]) == sorted(flags.split())
    assert all(line.partition(": ")[2] for line in processor.withheld)
    return list(processor.isa)


SAVES_ALL = 0x602E7


@pytest.mark.parametrize(
    ("bits", "lost"),
    [((1, 2), X86[:6]), ((5, 6, 7), X86[2:6]), ((17, 18), X86[6:]), ((0, 9), [])],
    ids=["AVX", "AVX-512", "AMX", "others"],
)
def test_without_its_registers_saved_an_instruction_set_is_not_usable(processor_of, bits, lost):
    for bit in bits:
        left = usable(processor_of, xcr0=f"{SAVES_ALL & ~(1 << bit):#x}")
        assert left == [name for name in X86 if name not in lost]


def test_what_is_withheld_has_its_mask_as_the_reason(processor_of):
    processor = processor_of("flags : avx2 avx512f\n", xcr0="0x7")
    assert processor.isa == ("avx2",)
    assert processor.withheld == ("avx512f: the system does not save its registers (XCR0 is 0x7)",)


@pytest.mark.parametrize("mask", ["", "0x", "noise", "-1", "0x" + "f" * 17, "1 2"])
def test_where_nothing_can_ask_the_kernels_flags_are_believed(processor_of, mask):
    assert usable(processor_of, xcr0=mask, xcomp=mask) == X86


@pytest.mark.parametrize(
    ("mask", "granted"), [("0x602e7", True), ("0x40000", True), ("0x0", False), ("0x202e7", False)]
)
def test_amx_must_be_granted_by_the_kernel(processor_of, mask, granted):
    # Some sandboxes list the flag, save the registers, and refuse: only bit 18 of ARCH_GET_XCOMP_SUPP tells.
    assert usable(processor_of, xcr0=f"{SAVES_ALL:#x}", xcomp=mask) == (X86 if granted else X86[:6])


def test_a_refusal_of_amx_is_told(processor_of):
    processor = processor_of("flags : avx2 amx_tile\n", xcr0=f"{SAVES_ALL:#x}", xcomp="0x0")
    assert processor.withheld == ("amx_tile: the kernel or the sandbox refuses AMX to programs",)


def test_an_old_kernel_takes_nothing_from_a_processor_without_amx(processor_of):
    flags = "avx2 avx512f avx512_vnni"
    assert usable(processor_of, flags, xcr0="0x2e7", xcomp="0x0") == flags.split()


@pytest.mark.parametrize(
    ("cap", "count"),
    [
        ("SSE41", 0),
        ("AVX", 0),
        ("AVX2", 1),
        ("AVX2_VNNI", 2),
        ("AVX2_VNNI_2", 2),
        ("AVX512_CORE", 3),
        ("AVX512_CORE_VNNI", 4),
        ("AVX512_CORE_BF16", 5),
        ("AVX512_CORE_FP16", 6),
        ("AVX512_CORE_AMX", 9),
        ("AVX512_CORE_AMX_FP16", 10),
        ("avx512_core_vnni", 4),
        ("DEFAULT", 10),
        ("noise", 10),
        ("", 10),
    ],
)
def test_onednn_may_be_capped(processor_of, cap, count):
    assert usable(processor_of, ONEDNN_MAX_CPU_ISA=cap) == X86[:count]


def test_a_cap_is_named_as_the_reason(processor_of):
    processor = processor_of("flags : avx2 avx512f\n", ONEDNN_MAX_CPU_ISA="avx2")
    assert processor.withheld == ("avx512f: ONEDNN_MAX_CPU_ISA=AVX2",)


def test_no_cap_takes_anything_from_arm(processor_of):
    for cap in ONEDNN_LEVELS:
        assert usable(processor_of, ARM, ONEDNN_MAX_CPU_ISA=cap) == ARM.split()


# This machine


class Refusing:
    def saved_state(self):
        raise OSError

    def requestable_state(self):
        raise OSError


class Answering:
    def saved_state(self):
        return 0x2E7

    def requestable_state(self):
        return 0x602E7


@pytest.mark.parametrize(
    ("arena", "saved", "requestable"),
    [(None, "", ""), (Refusing(), "0x0", "0x0"), (Answering(), "0x2e7", "0x602e7")],
)
def test_this_machine_is_asked_through_the_native_part(monkeypatch, arena, saved, requestable):
    monkeypatch.setattr(native, "arena", arena)
    live = Tree("/")
    read_processor(live)
    assert (live.seen["/probes/xcr0"], live.seen["/probes/xcomp"]) == (saved, requestable)


def test_the_cap_of_this_process_is_its_variable(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    processor = read_processor(Tree("/"))
    assert processor.vendor == "ARM" or processor.isa == ()

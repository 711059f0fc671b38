"""Processors, as /proc/cpuinfo and the caches in /sys describe them."""

from __future__ import annotations

from typing import NamedTuple

X86 = (
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ht "
    "syscall nx pdpe1gb rdtscp lm constant_tsc rep_good nopl nonstop_tsc cpuid pni pclmulqdq ssse3 fma cx16 "
    "pcid sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand lahf_lm abm 3dnowprefetch fsgsbase bmi1 avx2 "
    "smep bmi2 erms xsaveopt arat"
)
BROADWELL = f"{X86} acpi ss tm pbe dtes64 monitor vmx est tm2 x2apic rtm rdseed adx smap"
SKYLAKE = f"{BROADWELL} avx512f avx512dq clflushopt clwb avx512cd avx512bw avx512vl xsavec xgetbv1 pku ospke"
CASCADE_LAKE = f"{SKYLAKE} avx512_vnni"
ICE_LAKE = (
    f"{CASCADE_LAKE} avx512ifma sha_ni avx512vbmi umip avx512_vbmi2 gfni vaes vpclmulqdq avx512_bitalg "
    "avx512_vpopcntdq la57 rdpid fsrm"
)
SAPPHIRE_RAPIDS = (
    f"{ICE_LAKE} avx_vnni avx512_bf16 cldemote movdiri movdir64b serialize tsxldtrk amx_bf16 avx512_fp16 "
    "amx_tile amx_int8"
)
RAPTOR_LAKE = f"{BROADWELL} avx_vnni clflushopt clwb sha_ni umip pku ospke gfni vaes vpclmulqdq rdpid fsrm"
ZEN2 = (
    f"{X86} mmxext fxsr_opt svm extapic sse4a misalignsse osvw ibs topoext rdseed adx smap clwb sha_ni clzero"
)
ZEN3 = f"{ZEN2} x2apic invpcid pku ospke vaes vpclmulqdq rdpid fsrm"
ZEN4 = (
    f"{ZEN3} avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512_bf16 avx512vbmi avx512_vbmi2 gfni "
    "avx512_vnni avx512_bitalg avx512_vpopcntdq"
)
NEOVERSE_V1 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop "
    "sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg dcpodp svei8mm svebf16 "
    "i8mm bf16 dgh rng"
)


class Chip(NamedTuple):
    """A processor as /proc/cpuinfo and the caches describe it."""

    vendor: str
    numbers: tuple[int, int, int]  # family, model, stepping
    microcode: str
    name: str
    flags: str
    xcr0: str
    caches: tuple[int, int, int, int]  # KiB of L1d, L1i, L2, L3
    l3_cores: int  # that share an L3


INTEL, AMD = "GenuineIntel", "AuthenticAMD"
E5_2686 = Chip(
    INTEL,
    (6, 79, 1),
    "0xb000040",
    "Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz",
    BROADWELL,
    "0x7",
    (32, 32, 256, 46080),
    18,
)
SKX_8175 = Chip(
    INTEL,
    (6, 85, 4),
    "0x2007006",
    "Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz",
    SKYLAKE,
    "0x2e7",
    (32, 32, 1024, 33792),
    24,
)
CLX_6248 = Chip(
    INTEL,
    (6, 85, 7),
    "0x5003604",
    "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz",
    CASCADE_LAKE,
    "0x2e7",
    (32, 32, 1024, 28160),
    20,
)
ICX_8358 = Chip(
    INTEL,
    (6, 106, 6),
    "0xd0003d1",
    "Intel(R) Xeon(R) Platinum 8358 CPU @ 2.60GHz",
    ICE_LAKE,
    "0x2e7",
    (48, 32, 1280, 49152),
    32,
)
SPR_8480 = Chip(
    INTEL,
    (6, 143, 8),
    "0x2b000590",
    "Intel(R) Xeon(R) Platinum 8480+",
    SAPPHIRE_RAPIDS,
    "0x602e7",
    (48, 32, 2048, 107520),
    56,
)
EMR_8592 = Chip(
    INTEL,
    (6, 207, 2),
    "0x21000240",
    "INTEL(R) XEON(R) PLATINUM 8592+",
    SAPPHIRE_RAPIDS,
    "0x602e7",
    (48, 32, 2048, 327680),
    64,
)
GNR_6980 = Chip(
    INTEL,
    (6, 173, 1),
    "0x1000341",
    "Intel(R) Xeon(R) 6980P",
    f"{SAPPHIRE_RAPIDS} amx_fp16",
    "0x602e7",
    (48, 64, 2048, 516096),
    128,
)
I7_13700 = Chip(
    INTEL,
    (6, 183, 1),
    "0x12c",
    "13th Gen Intel(R) Core(TM) i7-13700",
    RAPTOR_LAKE,
    "0x207",
    (48, 32, 2048, 30720),
    16,
)
EPYC_7702 = Chip(
    AMD, (23, 49, 0), "0x830107c", "AMD EPYC 7702 64-Core Processor", ZEN2, "0x7", (32, 32, 512, 16384), 4
)
EPYC_7763 = Chip(
    AMD, (25, 1, 1), "0xa0011d5", "AMD EPYC 7763 64-Core Processor", ZEN3, "0x207", (32, 32, 512, 32768), 8
)
EPYC_9654 = Chip(
    AMD, (25, 17, 1), "0xa101148", "AMD EPYC 9654 96-Core Processor", ZEN4, "0x2e7", (32, 32, 1024, 32768), 8
)
EPYC_9655 = Chip(
    AMD,
    (26, 2, 1),
    "0xb002116",
    "AMD EPYC 9655 96-Core Processor",
    f"{ZEN4} avx_vnni",
    "0x2e7",
    (48, 32, 1024, 32768),
    8,
)
# Arm has other fields: the architecture, the part and the revision stand for family, model and stepping.
GRAVITON3 = Chip("ARM", (8, 0xD40, 1), "", "", NEOVERSE_V1, "0x0", (64, 64, 1024, 32768), 64)

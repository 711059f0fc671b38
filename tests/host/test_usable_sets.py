"""Which kernels a processor can run, and what HFACCEL_MAX_ISA leaves of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from trees import FORMS, HOSTS, NAMES, tree_maker

from hfaccel.host import KERNEL_SETS, cap_problem, read_host, usable_sets
from hfaccel.host.processor import ISA_FLAGS, read_processor

ZEN = ("avx2",)
SIERRA_FOREST = ("avx2", "avx_vnni")
SKYLAKE = ("avx2", "avx512f")
ICE_LAKE = (*SKYLAKE, "avx512_vnni")
ZEN4 = (*ICE_LAKE, "avx512_bf16")
SAPPHIRE_RAPIDS = (*ZEN4, "avx_vnni", "amx_tile", "amx_bf16", "amx_int8")
GRAVITON3 = ("asimd", "asimddp", "sve", "bf16", "i8mm")


@pytest.mark.parametrize(
    ("flags", "best"),
    [
        ((), None),
        (ZEN, "avx2_fp32"),
        (SIERRA_FOREST, "avx2_vnni"),
        (SKYLAKE, "avx512_fp32"),
        (ICE_LAKE, "avx512_vnni"),
        (ZEN4, "avx512_bf16"),
        (SAPPHIRE_RAPIDS, "amx"),
        (("asimd",), "neon_fp32"),
        (("asimd", "asimddp"), "neon_dot"),
        (GRAVITON3, "neon_bf16"),
    ],
)
def test_the_best_set_comes_first(flags, best):
    found = usable_sets(flags, "")
    assert (found[0] if found else None) == best


@pytest.mark.parametrize(
    ("cap", "best"),
    [
        ("amx", "amx"),
        ("avx512", "avx512_bf16"),
        ("avx512_vnni", "avx512_vnni"),
        ("avx512_fp32", "avx512_fp32"),
        ("avx2", "avx2_vnni"),
        ("avx2_fp32", "avx2_fp32"),
        ("none", None),
        ("neon", None),
    ],
)
def test_a_cap_leaves_it_and_what_is_smaller(cap, best):
    found = usable_sets(SAPPHIRE_RAPIDS, cap)
    assert (found[0] if found else None) == best
    assert set(found) <= set(usable_sets(SAPPHIRE_RAPIDS, ""))


def test_a_cap_above_what_the_cpu_has_changes_nothing():
    assert usable_sets(ZEN, "amx") == usable_sets(ZEN, "") == ("avx2_fp32",)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("cap", "problems"), [("AVX2 ", 0), ("", 0), ("avx3", 1), ("1", 1)])
def test_the_cap_is_read_and_a_wrong_one_is_told(tmp_path, form, cap, problems):
    files = {"/proc/cpuinfo": "flags : avx2 avx512f\n", "/probes/HFACCEL_MAX_ISA": cap}
    tree = tree_maker(form, tmp_path)(files)
    processor = read_processor(tree)
    assert len(tree.problems) == problems
    assert all(
        "must be one of amx, avx512, avx2, neon" in line and "ignored" in line for line in tree.problems
    )
    assert processor.kernel_sets[0] == ("avx2_fp32" if cap == "AVX2 " else "avx512_fp32")


def test_names_are_told_apart():
    names = [row.name for row in KERNEL_SETS]
    assert len(set(names)) == len(names) and not {row.family for row in KERNEL_SETS[1:]} & set(names)
    assert all(not cap_problem(name) for name in names)
    assert {flag for row in KERNEL_SETS for flag in row.flags} <= {flag.name for flag in ISA_FLAGS}


def test_every_set_is_built():
    text = (Path(__file__).parents[2] / "native/CMakeLists.txt").read_text()
    assert sorted(re.findall(r"^ *kernel_set\((\w+) ", text, re.M)) == sorted(row.name for row in KERNEL_SETS)


@pytest.mark.parametrize("name", NAMES)
def test_captured_hosts_have_kernels_by_their_flags(name):
    processor = read_host(HOSTS / f"{name}.txt").processor
    expected = json.loads((HOSTS / f"{name}.json").read_text())["facts"].get("processor", {}).get("isa")
    assert processor.kernel_sets == usable_sets(processor.isa if expected is None else expected, "")


SOURCES = sorted((Path(__file__).parents[2] / "native" / "kernels").rglob("*.[ch]"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_only_a_sets_folder_has_instructions(source):
    if "sets" not in source.parts:
        assert not re.search(r"_mm\d*_|__m\d{3}|immintrin|arm_neon|v(ld|st)\d?q_", source.read_text())

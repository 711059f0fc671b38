"""The cap on instructions (benchmarks/caps.py): what is set, and what stays above it all the same."""

from __future__ import annotations

import pytest

from caps import CAPS, UNHELD, apply, not_capped, precisions_here
from hfaccel.errors import HfaccelError
from hfaccel.host import read_host

PROCESSOR = read_host().processor
AVX512 = PROCESSOR._replace(isa=("avx2", "avx512f", "avx512_bf16"), withheld=())
AVX2 = PROCESSOR._replace(isa=("avx2",), withheld=())


def test_without_a_cap_nothing_is_set_and_nothing_is_marked():
    assert apply(None, {}) == {}
    assert not_capped("onnxruntime", "fp32", None, AVX512) == ""


def test_a_cap_sets_a_variable_for_every_library():
    assert apply("avx2", {}) == CAPS["avx2"]


def test_a_variable_that_says_the_same_is_no_conflict():
    assert apply("avx2", {"ONEDNN_MAX_CPU_ISA": "avx2"}) == CAPS["avx2"]


def test_a_variable_that_says_something_else_is_an_error_with_its_remedy():
    with pytest.raises(HfaccelError, match=r"ONEDNN_MAX_CPU_ISA=AVX2, but it is 'AVX' already; unset it"):
        apply("avx2", {"ONEDNN_MAX_CPU_ISA": "AVX"})


@pytest.mark.parametrize(("engine", "precision"), UNHELD)
def test_what_no_variable_holds_is_marked_where_the_cpu_has_more(engine, precision):
    assert not_capped(engine, precision, "avx2", AVX512)
    assert not_capped(engine, precision, "avx2", AVX2) == ""


def test_instructions_that_only_a_variable_hides_are_there_for_those_that_do_not_read_it():
    hidden = AVX2._replace(withheld=("avx512f: ONEDNN_MAX_CPU_ISA=AVX2",))
    assert not_capped("ipex", "fp32", "avx2", hidden)


@pytest.mark.parametrize("kernels", ["avx2", "avx2_vnni"])
def test_hfaccel_is_capped_where_it_says_so(kernels):
    assert not_capped("hfaccel", "fp32", "avx2", AVX512, kernels) == ""


@pytest.mark.parametrize("kernels", ["", "unknown", "avx512_bf16"])
def test_hfaccel_is_not_capped_where_it_does_not_say_so(kernels):
    assert "kernel set" in not_capped("hfaccel", "fp32", "avx2", AVX512, kernels)


def test_bf16_is_measured_where_something_multiplies_it():
    assert precisions_here(["fp32", "bf16"], ["avx512_bf16"], None) == (["fp32", "bf16"], "")


@pytest.mark.parametrize(("flags", "isa"), [(["avx2"], None), (["avx512_bf16"], "avx2")])
def test_bf16_is_left_out_with_the_reason_where_it_would_be_emulated(flags, isa):
    kept, reason = precisions_here(["fp32", "bf16", "int8"], flags, isa)
    assert kept == ["fp32", "int8"] and reason.startswith("bf16 is left out")


def test_no_reason_is_given_where_bf16_was_not_asked_for():
    assert precisions_here(["fp32"], ["avx2"], None) == (["fp32"], "")

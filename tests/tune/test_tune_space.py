"""The space: what a host and a wish allow, and nothing else."""

from __future__ import annotations

import pytest
from simulated import HOSTS, host

from hfaccel.bench.setting import Setting
from hfaccel.errors import UsageError
from hfaccel.host import read_host
from hfaccel.plan import cpu_budget
from hfaccel.tune.space import Asked, first_settings, make_space

ALL = ("torch", "onnxruntime", "openvino", "eager")


def values(space, axis):
    return next(each.values for each in space.axes if each.name == axis)


def test_a_large_host_has_thousands_of_settings_all_different_and_within_its_cores():
    space = make_space(host(80, nodes=2), Asked(throughput=True))
    assert len(space.settings) == 1980
    assert all(1 <= setting.instances * setting.threads <= 80 for setting in space.settings)
    assert {setting.instances for setting in space.settings} == {1, 2, 4, 5, 8, 10, 16, 20, 40, 80}


def test_one_core_has_one_place():
    space = make_space(host(1), Asked(throughput=True))
    assert {(setting.instances, setting.threads) for setting in space.settings} == {(1, 1)}


@pytest.mark.parametrize("path", sorted(HOSTS.glob("*.txt")), ids=lambda path: path.stem)
@pytest.mark.parametrize("throughput", [False, True])
def test_every_captured_host_has_a_space_with_its_default(path, throughput):
    facts = read_host(path)
    space = make_space(facts, Asked(throughput, "int8", ALL))
    assert space.default in space.settings
    assert first_settings(space, throughput)[0] == space.default
    assert all(setting in space.settings for setting in first_settings(space, throughput))
    cores = cpu_budget(facts).threads
    assert all(setting.instances * setting.threads <= cores for setting in space.settings)
    assert all(len(axis.values) <= 12 for axis in space.axes)


def test_latency_has_one_instance():
    assert values(make_space(host(8), Asked()), "instances") == (1,)


def test_the_default_is_what_the_rules_choose():
    found = make_space(host(8), Asked(accuracy="bf16")).default
    assert found == Setting("torch", "fp32", 8, 1, None, "mimalloc", "intel", None, "auto")
    bare = make_space(host(2, intel=False, thp="never", allocators=(), libc="musl"), Asked()).default
    assert bare == Setting("torch", "fp32", 2)
    assert make_space(host(8, quota=2.0), Asked()).default.wait_policy == "passive"


@pytest.mark.parametrize(
    ("facts", "axis", "expected"),
    [
        (host(2), "omp_runtime", ("default", "intel")),
        (host(2, intel=False), "omp_runtime", ("default",)),
        (host(2, allocators=("jemalloc",)), "allocator", ("jemalloc", "glibc", "default")),
        (host(2, allocators=(), libc="musl"), "allocator", ("default",)),
        (host(2, thp="never"), "huge_pages", ("off",)),
        (host(2), "huge_pages", ("auto", "off")),
        (host(8, quota=2.0), "wait_policy", ("passive",)),
        (host(2), "wait_policy", (None, "passive", "active")),
        (host(3), "share", (1, 2)),
        (host(16), "share", (1, 2, 4, 8)),
    ],
)
def test_only_what_the_host_has_is_varied(facts, axis, expected):
    assert values(make_space(facts, Asked()), axis) == expected


@pytest.mark.parametrize(
    ("accuracy", "engines"),
    [
        ("exact", ["torch fp32", "onnxruntime fp32"]),
        ("bf16", ["torch fp32", "onnxruntime fp32", "torch bf16"]),
        ("int8", ["torch fp32", "onnxruntime fp32", "torch bf16", "torch int8", "onnxruntime int8"]),
    ],
)
def test_nothing_is_less_accurate_than_asked_for(accuracy, engines):
    facts = read_host(HOSTS / "zen4-vm.txt")
    space = make_space(facts, Asked(accuracy=accuracy, backends=("torch", "onnxruntime")))
    assert list(values(space, "engine")) == engines


def test_weights_alone_are_rounded_for_generated_text():
    asked = Asked(accuracy="int4-weight-only", work="generation")
    engines = values(make_space(read_host(HOSTS / "zen4-vm.txt"), asked), "engine")
    assert engines == ("torch fp32", "torch bf16", "torch int8-weight-only", "torch int4-weight-only")


def test_a_processor_without_bfloat16_is_not_asked_for_it():
    asked = Asked(accuracy="bf16")
    assert values(make_space(read_host(HOSTS / "skylake-offline.txt"), asked), "engine") == ("torch fp32",)


def test_a_script_keeps_its_model():
    space = make_space(host(2), Asked(backends=(), work="script"))
    assert "engine" not in [axis.name for axis in space.axes]


def test_texts_have_a_budget_of_tokens():
    space = make_space(host(2), Asked(work="texts"))
    assert {setting.token_budget for setting in space.settings} >= {None, 512}
    assert space.default.token_budget is None


def test_an_axis_can_be_fixed():
    space = make_space(host(8), Asked(fixed={"allocator": "jemalloc"}))
    assert {setting.allocator for setting in space.settings} == {"jemalloc"}
    assert space.default.allocator == "jemalloc"


@pytest.mark.parametrize(
    ("asked", "rule", "got"),
    [
        (Asked(accuracy="fp8"), "accuracy must be one of exact, bf16", "but got 'fp8'"),
        (Asked(fixed={"colour": "red"}), "an axis must be one of engine, instances", "but got colour"),
        (Asked(fixed={"allocator": "best"}), "allocator must be one of mimalloc, ", "but got 'best'"),
        (Asked(fixed={"omp_runtime": "llvm"}), "omp_runtime must be one of default, intel here", "'llvm'"),
    ],
)
def test_what_is_none_is_refused(asked, rule, got):
    with pytest.raises(UsageError) as caught:
        make_space(host(8), asked)
    assert rule in str(caught.value) and got in str(caught.value)


def test_a_setting_outside_has_no_point():
    with pytest.raises(UsageError, match="a setting must be within the space, but got torch fp32, 3 threads"):
        make_space(host(8), Asked()).point(Setting("torch", threads=3))

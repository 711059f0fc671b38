"""Every check with facts that make it ok, a warning and an error."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import replace

from hfaccel import native
from hfaccel.bench.memory.kernel import judge
from hfaccel.doctor import CHECKS, Check, Diagnosis, Finding, checks, diagnose
from hfaccel.doctor.checks import Alignment, Allocator, HugePages, Kernels, NativePart, OpenMP, Threads
from hfaccel.engine import kernels
from hfaccel.host import Library, LogicalCpu, Topology, read_host

MIB = 1 << 20
CPUS = Topology(tuple(LogicalCpu(cpu, cpu, 0, 0) for cpu in range(8)))
HOST = read_host()
# A host that nothing is wrong with: eight cores, glibc, mimalloc at hand, huge pages on request.
FACTS = replace(
    HOST,
    topology=CPUS,
    limits=replace(HOST.limits, affinity=tuple(range(8)), cpu_quota=None, memory_limit=None),
    memory=replace(HOST.memory, thp="madvise", thp_disabled=False),
    allocators=(Library("mimalloc", "/lib/libmimalloc.so.3"),),
    libc="glibc",
    mapped=("/lib/libc.so.6", "/lib/libgomp.so.1"),
)


def with_memory(**values):
    return replace(FACTS, memory=replace(FACTS.memory, **values))


def with_limits(**values):
    return replace(FACTS, limits=replace(FACTS.limits, **values))


@pytest.fixture
def torch_threads(monkeypatch):
    """torch as if it had started so many threads."""

    def set_to(number):
        monkeypatch.setattr(torch, "get_num_threads", lambda: number)

    return set_to


@pytest.fixture
def mapped(monkeypatch):
    """This process as if it had these libraries loaded."""

    def set_to(*paths):
        monkeypatch.setattr(checks, "read_host", lambda: replace(FACTS, mapped=paths))

    return set_to


def test_a_missing_native_part_is_a_warning_with_its_cost(monkeypatch):
    monkeypatch.setattr(native, "arena", object())
    assert NativePart().find(FACTS).status == "ok"
    monkeypatch.setattr(native, "arena", None)
    monkeypatch.setattr(native, "MISSING", "the native part is missing: what it costs")
    finding = NativePart().find(FACTS)
    assert (finding.status, finding.message) == ("warning", native.MISSING)
    assert "C compiler" in finding.advice


@pytest.mark.parametrize(
    ("problem", "sets", "cap", "status", "text", "advice"),
    [
        ("", ("amx",), "", "ok", "the kernels for amx compute layers, and multiply float32, bfloat16", ""),
        ("", ("amx",), "amx", "ok", "; HFACCEL_MAX_ISA=amx allows no better set", ""),
        ("no AVX2", (), "", "warning", "no AVX2", "backend='openvino'"),
        ("none", (), "none", "warning", "none", "unset HFACCEL_MAX_ISA"),
        ("not built", ("amx",), "", "warning", "not built", "C compiler"),
    ],
)
def test_kernels_are_told_by_precision(monkeypatch, problem, sets, cap, status, text, advice):
    monkeypatch.setattr(kernels, "set_in_use", lambda: "amx")
    monkeypatch.setattr(kernels, "multiplies", lambda kind: kind.label != "int8")
    monkeypatch.setattr(kernels, "kernels_problem", lambda: problem)
    processor = FACTS.processor._replace(kernel_sets=sets, kernel_cap=cap)
    finding = Kernels().find(replace(FACTS, processor=processor))
    assert finding.status == status and text in finding.message and advice in finding.advice


@pytest.mark.parametrize(
    ("threads", "quota", "status", "advice"),
    [
        (8, None, "ok", ""),
        (16, None, "warning", "set OMP_NUM_THREADS=8"),
        (1, None, "warning", "set it to 8"),
        (8, 2.5, "warning", "set OMP_NUM_THREADS=2"),
        (2, 2.5, "ok", ""),
        (1, 0.5, "ok", ""),
    ],
)
def test_threads_are_compared_with_the_budget(torch_threads, threads, quota, status, advice):
    torch_threads(threads)
    finding = Threads().find(with_limits(cpu_quota=quota))
    assert finding.status == status and advice in finding.advice
    assert f"torch starts {threads}" in finding.message


def test_siblings_are_no_cores(torch_threads):
    """Eight logical CPUs on four cores: four threads are right, eight are too many."""
    pairs = Topology(tuple(LogicalCpu(cpu, cpu % 4, 0, 0) for cpu in range(8)))
    facts = replace(FACTS, topology=pairs)
    torch_threads(4)
    assert Threads().find(facts).status == "ok"
    torch_threads(8)
    assert Threads().find(facts).status == "warning"


@pytest.mark.parametrize(
    ("paths", "status"),
    [
        ((), "ok"),
        (("/lib/libgomp.so.1",), "ok"),
        (("/lib/libgomp.so.1", "/x/libgomp-a1b2.so.1.0.0"), "error"),
        (("/lib/libgomp.so.1", "/x/libiomp5.so"), "error"),
        (("/lib/libgomp.so.1", "/x/libother.so"), "ok"),
    ],
)
def test_two_openmp_runtimes_are_an_error(mapped, paths, status):
    mapped(*paths)
    finding = OpenMP().find(FACTS)
    assert finding.status == status
    assert (torch.__version__ in finding.message) and (finding.advice != "") == (status == "error")


def test_the_runtimes_are_those_of_this_process_after_torch(mapped):
    """The facts may be older than the import of torch."""
    mapped("/lib/libgomp.so.1", "/x/libiomp5.so")
    assert OpenMP().find(replace(FACTS, mapped=())).status == "error"


def test_an_allocator_at_hand_is_ok():
    finding = Allocator().find(FACTS)
    assert finding.status == "ok" and "will preload mimalloc" in finding.message


def test_no_allocator_at_hand_is_a_warning():
    finding = Allocator().find(replace(FACTS, allocators=()))
    assert finding.status == "warning" and finding.advice == "pip install cmeel-mimalloc"


@pytest.mark.parametrize("name", ["libmimalloc.so.3", "libjemalloc.so.2", "libtcmalloc_minimal.so.4"])
def test_an_allocator_that_serves_already_is_ok(name):
    finding = Allocator().find(replace(FACTS, allocators=(), mapped=(f"/lib/{name}",)))
    assert finding.status == "ok" and finding.message == f"{name} serves malloc already"


@pytest.mark.parametrize(("mode", "status"), [("madvise", "ok"), ("always", "ok"), ("never", "warning")])
def test_huge_pages_follow_the_kernels_mode(mode, status):
    finding = HugePages().find(with_memory(thp=mode))
    assert finding.status == status and f"mode {mode}" in finding.message
    assert ("transparent_hugepage/enabled" in finding.advice) == (status == "warning")


def test_huge_pages_that_the_kernel_lacks_are_a_warning():
    assert HugePages().find(with_memory(thp="absent")).status == "warning"


def test_huge_pages_switched_off_for_the_process_have_other_advice():
    """The kernel's mode is right there; writing to its file would change nothing."""
    finding = HugePages().find(with_memory(thp="madvise", thp_disabled=True))
    assert finding.status == "warning" and "PR_SET_THP_DISABLE" in finding.message
    assert finding.advice and "transparent_hugepage/enabled" not in finding.advice


def test_the_alignment_of_mappings_is_told(monkeypatch):
    monkeypatch.setattr(checks, "probe_alignment", lambda: judge([0] * 6, [1] * 6))
    finding = Alignment().find(FACTS)
    assert finding.status == "ok" and "this kernel aligns every anonymous mapping" in finding.message
    assert "6 of 6 odd sizes" in finding.message


def test_alignment_leaves_no_mapping():
    def lines():
        with open("/proc/self/maps") as maps:  # noqa: PTH123
            return sum(1 for _ in maps)

    Alignment().find(FACTS)
    before = lines()
    for _ in range(20):
        assert Alignment().find(FACTS).status == "ok"
    assert lines() - before < 20


def test_mappings_that_fail_are_a_warning(monkeypatch):
    def fail():
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(checks, "probe_alignment", fail)
    finding = Alignment().find(FACTS)
    assert finding.status == "warning" and "Cannot allocate memory" in finding.message and finding.advice


class Fixed(Check):
    def __init__(self, status):
        self.name, self.status = f"a {status} check", status

    def find(self, facts):
        if self.status == "ok":
            return self.ok(facts.libc)
        return getattr(self, self.status)("message", "advice")


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([], 0),
        (["ok", "ok"], 0),
        (["ok", "warning", "ok"], 1),
        (["warning", "error", "ok"], 2),
        (["error"], 2),
    ],
)
def test_the_worst_finding_is_the_exit_code(statuses, code):
    diagnosis = diagnose([Fixed(status) for status in statuses], FACTS)
    assert [finding.status for finding in diagnosis.findings] == statuses
    assert diagnosis.exit_code == code
    described = json.loads(json.dumps(diagnosis.to_dict()))
    assert described["exit_code"] == code and len(described["findings"]) == len(statuses)


def test_a_finding_carries_the_name_of_its_check():
    assert Fixed("warning").find(FACTS) == Finding("a warning check", "warning", "message", "advice")
    assert Diagnosis((Fixed("ok").find(FACTS),)).findings[0].message == "glibc"


def test_checks_get_this_hosts_facts_where_none_are_given():
    assert diagnose([Fixed("ok")]).findings[0].message == HOST.libc


def test_every_check_is_in_the_list_once():
    assert {type(check) for check in CHECKS} == set(Check.__subclasses__()) - {Fixed}
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_every_finding_but_ok_has_advice():
    for finding in diagnose(CHECKS).findings:
        assert finding.message and bool(finding.advice) == (finding.status != "ok")

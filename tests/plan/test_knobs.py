"""The rows of KNOBS: what each rule chooses and why, and what a user may ask for instead."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import replace
from hypothesis import given
from hypothesis import strategies as st

from hfaccel.errors import UsageError
from hfaccel.host import Library, MemoryFacts, read_host
from hfaccel.plan import KNOBS, Goal, make_plan

FACTS = read_host(Path(__file__).parent.parent / "hosts/xeon-2-sockets")  # CPUs 0-15, siblings 8 apart
LAUNCH, PROCESS = Goal("launch"), Goal("process")
MASK = "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"


def choose(knob, goal=LAUNCH, **changes):
    return make_plan(replace(FACTS, **changes), goal)[knob]


def asked(knob, value, **changes):
    choice = choose(knob, Goal("launch", {knob: value}), **changes)
    assert (choice.source, choice.reason) == ("user", "asked for")
    return choice.value


def limits(**changes):
    return replace(FACTS.limits, **changes)


# The table itself


def test_every_knob_is_documented_in_one_line():
    names = [knob.name for knob in KNOBS]
    assert len(set(names)) == len(names)
    for knob in KNOBS:
        assert knob.meaning
        assert "\n" not in knob.meaning


def test_no_variable_belongs_to_two_knobs():
    variables = [variable for knob in KNOBS for variable in knob.variables]
    assert len(set(variables)) == len(variables)
    assert all(knob.variables for knob in KNOBS)


# Rules


def test_threads_are_the_physical_cores():
    choice = choose("threads")
    assert choice.value == 8
    assert choice.reason == "8 physical cores in the affinity mask of 16 CPUs"


def test_threads_follow_the_quota():
    choice = choose("threads", limits=limits(cpu_quota=2.5))
    assert choice.value == 2
    assert choice.reason == "the CPU quota of 2.5 allows 2 of 8 cores"


def test_siblings_are_left_out():
    choice = choose("affinity")
    assert choice.value == tuple(range(8))
    assert "8 sibling CPUs left out" in choice.reason


def test_a_mask_without_siblings_is_left_as_it_is():
    choice = choose("affinity", limits=limits(affinity=(0, 1, 10)))
    assert choice.value is None
    assert "already" in choice.reason


def test_the_first_cpu_in_the_mask_stands_for_its_core():
    assert choose("affinity", limits=limits(affinity=(1, 8, 9))).value == (1, 8)


@pytest.mark.parametrize(("quota", "bound", "waiting"), [(7.9, False, "passive"), (8.0, True, None)])
def test_a_quota_counts_only_where_it_is_less_than_the_cores(quota, bound, waiting):
    assert (choose("affinity", limits=limits(cpu_quota=quota)).value is not None) is bound
    choice = choose("omp_wait_policy", limits=limits(cpu_quota=quota))
    assert choice.value == waiting
    assert ("quota" in choice.reason) is not bound


@pytest.mark.parametrize(
    ("allocators", "libc", "value", "why"),
    [
        (FACTS.allocators, "glibc", FACTS.allocators[0], "jemalloc keeps"),
        ((), "glibc", "glibc", "no other allocator was found"),
        ((), "musl", None, "the libc (musl) has no such settings"),
    ],
)
def test_the_allocator_of_a_new_process(allocators, libc, value, why):
    choice = choose("allocator", allocators=allocators, libc=libc)
    assert choice.value == value
    assert why in choice.reason


@pytest.mark.parametrize(
    ("mapped", "libc", "value", "why"),
    [
        (("/lib/libc.so.6",), "glibc", "glibc", "but glibc's thresholds"),
        (("/lib/libc.musl-x86_64.so.1",), "musl", None, "the libc is musl"),
        (("/lib/libc.so.6", "/a/libjemalloc.so.2"), "glibc", None, "libjemalloc.so.2 serves malloc already"),
        (("/a/libmimalloc.so.3",), "glibc", None, "libmimalloc.so.3 serves malloc already"),
        (("/a/libtcmalloc_minimal.so.4",), "musl", None, "libtcmalloc_minimal.so.4 serves malloc already"),
    ],
)
def test_the_allocator_of_a_running_process(mapped, libc, value, why):
    choice = choose("allocator", PROCESS, mapped=mapped, libc=libc)
    assert choice.value == value
    assert why in choice.reason


@pytest.mark.parametrize(
    ("mode", "disabled", "value", "why"),
    [
        ("always", False, "thp", "mode always"),
        ("madvise", False, "thp", "mode madvise"),
        ("never", False, "off", "mode never"),
        ("absent", False, "off", "mode absent"),
        ("always", True, "off", "PR_SET_THP_DISABLE"),
    ],
)
def test_huge_pages_are_asked_for_where_the_kernel_gives_them(mode, disabled, value, why):
    choice = choose("huge_pages", memory=MemoryFacts(0, mode, "", disabled))
    assert choice.value == value
    assert why in choice.reason


# What a user may ask for


@pytest.mark.parametrize(("value", "threads"), [(1, 1), ("4", 4), (" 4 ", 4), (1000, 1000)])
def test_threads_asked_for(value, threads):
    assert asked("threads", value) == threads


@pytest.mark.parametrize(
    ("value", "cpus"),
    [
        ("off", None),
        ("0-3,8", (0, 1, 2, 3, 8)),
        ([8, 0], (0, 8)),
        ((1, 1), (1,)),
        ({2}, (2,)),
        (range(2), (0, 1)),
    ],
)
def test_affinity_asked_for(value, cpus):
    assert asked("affinity", value) == cpus


def test_affinity_asked_for_is_within_the_mask_and_not_only_online():
    with pytest.raises(UsageError, match=r"within the affinity mask 4,5, but got '0-5'"):
        asked("affinity", "0-5", limits=limits(affinity=(4, 5)))


def test_an_allocator_is_asked_for_by_name_or_path():
    assert asked("allocator", "default") is None
    assert asked("allocator", "glibc") == "glibc"
    assert asked("allocator", "tcmalloc") == FACTS.allocators[1]
    assert asked("allocator", sys.executable) == Library("custom", sys.executable)  # an ELF file


@pytest.mark.parametrize(("value", "pages"), [("off", "off"), (False, "off"), ("thp", "thp"), (True, "thp")])
def test_huge_pages_asked_for(value, pages):
    assert asked("huge_pages", value) == pages


@pytest.mark.parametrize("value", ["active", "passive", "PASSIVE"])
def test_a_wait_policy_asked_for(value):
    assert asked("omp_wait_policy", value) == value.lower()


# knob, value, rule, remedy. The value itself must be in the message, too.
THREADS = ("`threads >= 1` must hold", "leave it out to use every core")
NUMBERS = ("CPU numbers such as 0-3,8 are expected", "0-3,8")
WITHIN = ("CPUs must be within the affinity mask", MASK)
INSTALLED = ("must be default, glibc, a path, or one that is installed", "pip install cmeel-mimalloc")
LOADABLE = ("a library to preload must be loadable", "auto")
PAGES = ("huge_pages must be", "auto, thp or off")
POLICY = ("the OpenMP wait policy must be", "active or passive")
REFUSED = [
    *(("threads", value, *THREADS) for value in (0, -1, "0", "-4", "many", "", "2.5", [], (1, 2))),
    *(("threads", value, *THREADS) for value in (2.5, float("nan"), float("inf"))),
    *(("affinity", value, *NUMBERS) for value in ("x", "0-", "-3", "3-1", "0-3:2", "0-99999999")),
    *(("affinity", value, *NUMBERS) for value in (5, ["x"], [None], [float("inf")])),
    *(("affinity", value, *WITHIN) for value in ("16", "0-16", "", [], [-1], [0, 99])),
    *(("allocator", value, *INSTALLED) for value in ("mimalloc", "malloc", "", 1, True)),
    *(("allocator", value, *LOADABLE) for value in ("/no/such/library.so", "./missing.so", "/dev/null", "/")),
    *(("huge_pages", value, *PAGES) for value in ("2M", "", "on", 2, "madvise")),
    *(("omp_wait_policy", value, *POLICY) for value in ("spin", "", 1)),
]


@pytest.mark.parametrize(("knob", "value", "rule", "remedy"), REFUSED)
def test_a_refusal_names_the_rule_the_value_and_the_remedy(knob, value, rule, remedy):
    with pytest.raises(UsageError) as raised:
        make_plan(FACTS, Goal("launch", {knob: value}))
    message = str(raised.value)
    assert rule in message
    assert str(value) in message
    assert remedy in message
    assert "\n" not in message
    assert raised.value.exit_code == 2


def test_a_refusal_lists_the_allocators_found():
    with pytest.raises(UsageError, match=r"found here: jemalloc, tcmalloc"):
        asked("allocator", "mimalloc")
    with pytest.raises(UsageError, match=r"found here: none"):
        asked("allocator", "mimalloc", allocators=())


anything = st.one_of(
    st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.lists(st.integers(-2, 20))
)


@pytest.mark.parametrize("knob", [knob.name for knob in KNOBS])
@given(value=anything)
def test_any_value_is_taken_or_refused_by_a_usage_error(knob, value):
    try:
        choice = make_plan(FACTS, Goal("launch", {knob: value}))[knob]
    except UsageError:
        return
    if knob == "threads":
        assert choice.value >= 1
    if knob == "affinity" and choice.value is not None:
        assert set(choice.value) <= set(FACTS.limits.affinity)
        assert list(choice.value) == sorted(set(choice.value))

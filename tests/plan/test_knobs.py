"""The rows of KNOBS: what each rule chooses and why, and what a user may ask for instead."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import replace
from hypothesis import given
from hypothesis import strategies as st
from topologies import make_topology

from hfaccel.errors import UsageError
from hfaccel.host import Library, MemoryFacts, read_host
from hfaccel.plan import KNOBS, Goal, MemoryPolicy, Slot, make_plan

FACTS = read_host(Path(__file__).parent.parent / "hosts/xeon-2-sockets.txt")  # CPUs 0-15, siblings 8 apart
LAUNCH, PROCESS = Goal("launch"), Goal("process")
GIB = 1 << 30
INTEL = Library("intel", "/opt/conda/lib/libiomp5.so")
LONG = "9" * 5000  # Python converts no more than 4300 digits


def choose(knob, goal=LAUNCH, **changes):
    return make_plan(replace(FACTS, **changes), goal)[knob]


def asked(knob, value, **changes):
    choice = choose(knob, Goal("launch", {knob: value}), **changes)
    assert (choice.source, choice.reason) == ("user", "asked for")
    return choice.value


def limits(**changes):
    return replace(FACTS.limits, **changes)


def software(**changes):
    return replace(FACTS.software, **changes)


# The table itself


def test_every_knob_is_documented_in_one_line():
    names = [knob.name for knob in KNOBS]
    assert len(set(names)) == len(names)
    for knob in KNOBS:
        assert knob.meaning and "\n" not in knob.meaning
        assert set(knob.scopes) <= {"launch", "process"} and knob.scopes


def test_no_variable_stands_twice_in_a_row():
    for knob in KNOBS:
        assert len(set(knob.variables)) == len(knob.variables)


# Rules for threads and places


def test_threads_are_the_physical_cores():
    choice = choose("threads")
    assert choice.value == 8
    assert choice.reason == "8 physical cores in the affinity mask of 16 CPUs"


def test_threads_follow_the_quota():
    choice = choose("threads", limits=limits(cpu_quota=2.5))
    assert choice.value == 2
    assert choice.reason == "the CPU quota of 2.5 allows 2 of 8 cores"


def test_what_the_program_has_set_wins_over_variables_and_rules_and_loses_to_what_is_asked_for():
    goal = Goal("process", program={"threads": "torch.set_num_threads(3)"})
    for environment in ({}, {"OMP_NUM_THREADS": "5"}):
        choice = choose("threads", goal._replace(environment=environment))
        assert (choice.value, choice.source) == (None, "program")
        assert choice.reason == "torch.set_num_threads(3) is the program's own and kept"
    assert choose("threads", goal._replace(overrides={"threads": 2})).value == 2


def test_there_is_one_interop_thread():
    assert choose("interop_threads", PROCESS).value == 1


def test_siblings_are_left_out():
    choice = choose("affinity")
    assert choice.value == tuple(range(8))
    assert "8 other CPUs left out" in choice.reason


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


def nodes(*memory, **others):
    """Nodes of four cores each, or none where there is only memory; and where this process runs."""
    cores = [4] * (len(memory) - others.pop("without_cpus", 0))
    cores += [0] * (len(memory) - len(cores))
    return {"topology": make_topology(cores, memory=list(memory)), "limits": limits(**others)}


@pytest.mark.parametrize(
    ("host", "policy", "why"),
    [
        (nodes(GIB, affinity=(0, 1, 2, 3)), None, "one NUMA node"),
        (nodes(GIB, GIB, affinity=tuple(range(8))), "interleave:0-1", "threads run on nodes 0-1"),
        (nodes(GIB, GIB, 0, affinity=(0, 8)), None, "at most one has memory"),
        (nodes(GIB, GIB, affinity=(4, 5)), "preferred:1", "all threads run on node 1"),
        (nodes(GIB, GIB, affinity=(4, 5), memory_nodes=(0, 1)), "preferred:1", "all threads run on node 1"),
        (nodes(GIB, GIB, affinity=(4, 5), memory_nodes=(0,)), None, "one NUMA node"),
        (nodes(GIB, 0, affinity=(4, 5)), None, "one NUMA node"),
        # node 2 has no memory: 1 is nearer to it than 0
        (nodes(GIB, GIB, 0, affinity=(8, 9)), "preferred:1", "all threads run on node 2"),
        # memory without CPUs beside (CXL): the node's own is nearer
        (nodes(GIB, GIB, without_cpus=1, affinity=(0, 1)), "preferred:0", "all threads run on node 0"),
    ],
)
def test_memory_is_preferred_where_the_threads_are(host, policy, why):
    choice = choose("memory_policy", **host)
    assert str(choice.value or "") == (policy or "")
    assert why in choice.reason


@pytest.mark.parametrize(
    ("openmp", "vendor", "quota", "value", "why"),
    [
        ((INTEL,), "GenuineIntel", None, INTEL, "is installed"),
        ((), "GenuineIntel", None, None, "no other is installed"),
        ((INTEL,), "AuthenticAMD", None, INTEL, "is installed"),
        ((INTEL,), "GenuineIntel", 2.0, None, "a CPU quota"),
        ((INTEL,), "GenuineIntel", 8.0, INTEL, "is installed"),
    ],
)
def test_intels_openmp_is_used_where_it_is_installed_without_a_quota(openmp, vendor, quota, value, why):
    processor = replace(FACTS.processor, vendor=vendor)
    choice = choose("omp_runtime", openmp=openmp, processor=processor, limits=limits(cpu_quota=quota))
    assert choice.value == value
    assert why in choice.reason


def test_openmp_is_not_told_where_to_place_its_threads():
    assert choose("omp_placement").value is None


# Rules for memory


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
        (("/lib/libc.so.6",), "glibc", "glibc", "only glibc's thresholds"),
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


@pytest.mark.parametrize(
    ("total", "limit", "value"),
    [
        (64 * GIB, None, None),
        (64 * GIB, 2 * GIB, 128),
        (2 * GIB, None, 128),
        (2 * GIB, 64 * GIB, 128),
        (4 * GIB, None, None),
        (4 * GIB - 1, None, 128),
        (0, None, None),
        (0, GIB, 128),
    ],
)
def test_little_memory_has_a_small_primitive_cache(total, limit, value):
    memory = replace(FACTS.memory, total=total)
    choice = choose("primitive_cache", memory=memory, limits=limits(memory_limit=limit))
    assert choice.value == value
    assert ("GiB of memory" in choice.reason) == (value is not None)


@pytest.mark.parametrize(
    ("total", "limit", "value"),
    [
        (64 * GIB, None, 7 << 28),
        (4 * GIB, None, GIB // 2),
        (64 * GIB, 2 * GIB, GIB // 4),
        (2 * GIB, 64 * GIB, GIB // 4),
        (0, 4 * GIB, GIB // 2),
        (1 << 20, None, 1 << 20),
        (0, 1, 1 << 20),
        (1 << 50, 1 << 50, 7 << 28),
    ],
)
def test_an_eighth_of_what_may_be_used_is_retained(total, limit, value):
    memory = replace(FACTS.memory, total=total)
    choice = choose("retained_memory", memory=memory, limits=limits(memory_limit=limit))
    assert choice.value == value < 1 << 31  # glibc takes it as an int
    assert "an eighth" in choice.reason


RANKED = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("siblings", "goal"),
    [
        (8, PROCESS),
        (1, Goal("process", environment=RANKED)),
        (2, Goal("process", environment=RANKED)),
        (1, Goal("launch", slot=Slot(0, 8, (0,), 1, (0,), "instance 0 of 8"))),
    ],
)
def test_processes_that_share_the_memory_share_what_is_retained(siblings, goal):
    memory = MemoryFacts(8 * GIB, "madvise", "madvise", False)
    choice = choose(
        "retained_memory", goal, memory=memory, limits=limits(memory_limit=None, siblings=siblings)
    )
    assert choice.value == GIB // 8
    assert choice.reason.endswith("there are 8 processes")


# Rules for libraries


@pytest.mark.parametrize(
    ("affinity", "quota", "value", "why"),
    [
        (range(16), None, None, "the CPUs of the affinity mask"),
        (range(16), 3.5, 3, "counts the CPUs of the host"),
        ((0, 8), None, 1, "one compute thread"),
        (range(16), 0.5, 1, "one compute thread"),
    ],
)
def test_tokenizers_are_told_what_they_cannot_see(affinity, quota, value, why):
    choice = choose("tokenizer_threads", limits=limits(affinity=tuple(affinity), cpu_quota=quota))
    assert choice.value == value
    assert why in choice.reason


@pytest.mark.parametrize(
    ("remote", "in_use", "local", "offline", "value", "why"),
    [
        (False, False, "/var/tmp/h", "", None, "a local file system"),
        (True, False, "/var/tmp/h", "", "/var/tmp/h", "network file system (nfs4)"),
        (True, True, "/var/tmp/h", "", None, "some are there already"),
        (True, False, "", "", None, "no local place"),
        (True, False, "/var/tmp/h", "1", None, "no local place"),
    ],
)
def test_models_are_kept_where_reading_them_is_local(remote, in_use, local, offline, value, why):
    there = software(
        hub_cache_remote=remote,
        hub_cache_in_use=in_use,
        local_cache=local,
        hub_cache_filesystem="nfs4",
    )
    choice = choose("hub_cache", Goal("launch", {}, {"HF_HUB_OFFLINE": offline}), software=there)
    assert choice.value == value
    assert why in choice.reason


@pytest.mark.parametrize(("installed", "value"), [(True, 2), (False, None)])
def test_tensorflow_gets_the_same_threads_where_it_is_installed(installed, value):
    choice = choose(
        "tensorflow_threads", limits=limits(cpu_quota=2.0), software=software(tensorflow=installed)
    )
    assert choice.value == value
    assert ("quota of 2" in choice.reason) == installed


@pytest.mark.parametrize(("cuda", "value"), [(True, "expandable_segments:True"), (False, None)])
def test_cuda_memory_grows_in_segments_where_there_is_cuda(cuda, value):
    assert choose("cuda_allocator", software=software(cuda=cuda)).value == value


# What a user may ask for

GOOD = [
    *(("threads", value, number) for value, number in ((1, 1), ("4", 4), (" 4 ", 4), (1000, 1000), (2.0, 2))),
    ("interop_threads", "3", 3),
    ("tokenizer_threads", 5, 5),
    ("tensorflow_threads", "6", 6),
    ("affinity", "off", None),
    ("affinity", "0-3,8", (0, 1, 2, 3, 8)),
    ("affinity", [8, 0], (0, 8)),
    ("affinity", (1, 1), (1,)),
    ("affinity", {2}, (2,)),
    ("affinity", range(2), (0, 1)),
    ("memory_policy", "off", None),
    ("memory_policy", "preferred:1", MemoryPolicy("preferred", (1,))),
    ("memory_policy", "bind:0", MemoryPolicy("bind", (0,))),
    ("memory_policy", "interleave:0-1", MemoryPolicy("interleave", (0, 1))),
    ("memory_policy", MemoryPolicy("bind", (0, 1)), MemoryPolicy("bind", (0, 1))),
    ("omp_runtime", "default", None),
    ("omp_runtime", sys.executable, Library("intel", sys.executable)),  # an ELF file
    *(("omp_wait_policy", value, value.lower()) for value in ("active", "passive", "PASSIVE")),
    ("omp_placement", "close", "close"),
    ("omp_placement", "spread", "spread"),
    ("omp_placement", "off", None),
    ("allocator", "default", None),
    ("allocator", "glibc", "glibc"),
    ("allocator", "tcmalloc", FACTS.allocators[1]),
    ("allocator", sys.executable, Library("custom", sys.executable)),
    ("retained_memory", "1M", 1 << 20),
    ("retained_memory", "512m", 512 << 20),
    ("retained_memory", "1GiB", GIB),
    ("retained_memory", "2048KB", 2 << 20),
    ("retained_memory", 1 << 20, 1 << 20),
    ("retained_memory", "1792M", 7 << 28),
    ("huge_pages", "off", "off"),
    ("huge_pages", False, "off"),
    ("huge_pages", "thp", "thp"),
    ("huge_pages", True, "thp"),
    ("retained_memory", "512M", 512 << 20),
    ("retained_memory", "1GiB", 1 << 30),
    ("retained_memory", 1 << 20, 1 << 20),
    ("primitive_cache", 0, 0),
    ("primitive_cache", "64", 64),
    ("hub_cache", "off", None),
    ("hub_cache", "/data/models", "/data/models"),
    ("cuda_allocator", "off", None),
    ("cuda_allocator", "max_split_size_mb:128", "max_split_size_mb:128"),
]


@pytest.mark.parametrize(("knob", "given_", "value"), GOOD)
def test_what_may_be_asked_for(knob, given_, value):
    assert asked(knob, given_) == value


def test_every_knob_has_good_values_and_most_have_bad_ones():
    names = {knob.name for knob in KNOBS}
    assert {knob for knob, _, _ in GOOD} == names
    assert {row[0] for row in REFUSED} == names - {"cuda_allocator"}  # its words are torch's business


def test_affinity_asked_for_is_within_the_mask_and_not_only_online():
    with pytest.raises(UsageError, match=r"within the affinity mask 4-5, but got '0-5'"):
        asked("affinity", "0-5", limits=limits(affinity=(4, 5)))


def test_an_openmp_that_is_installed_is_asked_for_by_name():
    assert asked("omp_runtime", "intel", openmp=(INTEL,)) == INTEL


# knob, value, rule, remedy. The value itself must be in the message, too.
THREADS = ("must hold", "leave it out")
NUMBERS = ("CPU numbers such as 0-3,8 are expected", "0-3,8")
WITHIN = ("CPUs must be within the affinity mask", "0-15")
POLICY = ("a memory policy is off, or preferred, bind, interleave", "nodes of [0, 1] such as preferred:0")
RUNTIME = ("must be default, a path, or one that is installed", "pip install intel-openmp")
RUNTIME_PATH = ("an OpenMP runtime must be loadable", "")
INSTALLED = ("must be default, glibc, a path, or one that is installed", "pip install cmeel-mimalloc")
LOADABLE = ("a library to preload must be loadable", "auto")
PAGES = ("huge_pages must be", "auto, thp or off")
WAIT = ("the OpenMP wait policy must be", "active or passive")
PLACEMENT = ("the OpenMP placement must be", "close, spread or off")
RETAINED = ("retained memory must be bytes, such as 512M", "from 1M to 1792M")
RETAINED = ("retained memory must be bytes", "such as 512M, from 1M to 1792M")
CACHE = ("the primitive cache must hold", "0 or more shapes")
HUB = ("the hub cache must be", "off or an absolute path")
COUNTED = ("threads", "interop_threads", "tokenizer_threads", "tensorflow_threads")
PATHS = ("/no/such/library.so", "./missing.so", "/dev/null", "/")
REFUSED = [
    *((knob, value, *THREADS) for knob in COUNTED for value in (0, -1, "0", "many")),
    *(("threads", value, *THREADS) for value in ("-4", "", "2.5", [], (1, 2), LONG)),
    *(("threads", value, *THREADS) for value in (2.5, float("nan"), float("inf"))),
    *(("affinity", value, *NUMBERS) for value in ("x", "0-", "-3", "3-1", "0-3:2", "0-99999999", LONG)),
    *(("affinity", value, *NUMBERS) for value in (5, ["x"], [None], [float("inf")], [0.5], [1.5])),
    *(("affinity", value, *WITHIN) for value in ("16", "0-16", "", [], [-1], [0, 99])),
    *(("memory_policy", value, *POLICY) for value in ("bind", "bind:", "bind:2", "preferred:0,5", "0", "")),
    *(
        ("memory_policy", value, *POLICY)
        for value in ("local:0", "bind:x", "bind:0:1", "Bind:0", 0, [], LONG)
    ),
    *(("omp_runtime", value, *RUNTIME) for value in ("intel", "llvm", "", 1, True)),
    *(("omp_runtime", value, *RUNTIME_PATH) for value in PATHS),
    *(("omp_wait_policy", value, *WAIT) for value in ("spin", "", 1, "off")),
    *(("omp_placement", value, *PLACEMENT) for value in ("master", "", 1, "Close", True)),
    *(("allocator", value, *INSTALLED) for value in ("mimalloc", "malloc", "", 1, True)),
    *(("allocator", value, *LOADABLE) for value in PATHS),
    *(("huge_pages", value, *PAGES) for value in ("2M", "", "on", 2, "madvise")),
    *(("retained_memory", value, *RETAINED) for value in (0, -1, "", "M", "1", "1023K", "1793M", "2G")),
    *(("retained_memory", value, *RETAINED) for value in ("off", "-1M", "1.5G", "1T", [], True, LONG)),
    *(("retained_memory", value, *RETAINED) for value in (0, "", "2G", "much", -1, "1K", LONG, 1.5)),
    *(("primitive_cache", value, *CACHE) for value in (-1, "-1", "", "many", 1.5, True, [], LONG)),
    *(("hub_cache", value, *HUB) for value in ("models", "~/models", "", 1, True, "../x")),
]


@pytest.mark.parametrize(("knob", "value", "rule", "remedy"), REFUSED, ids=lambda given: str(given)[:30])
def test_a_refusal_names_the_rule_the_value_and_the_remedy(knob, value, rule, remedy):
    with pytest.raises(UsageError) as raised:
        make_plan(FACTS, Goal("launch", {knob: value}))
    message = str(raised.value)
    assert rule in message
    assert str(value) in message or value == LONG
    assert remedy in message
    assert "\n" not in message
    assert raised.value.exit_code == 2


def test_a_refusal_lists_what_was_found():
    with pytest.raises(UsageError, match=r"found here: jemalloc, tcmalloc"):
        asked("allocator", "mimalloc")
    with pytest.raises(UsageError, match=r"found here: none"):
        asked("allocator", "mimalloc", allocators=())
    with pytest.raises(UsageError, match=r"found here: intel"):
        asked("omp_runtime", "llvm", openmp=(INTEL,))


anything = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["off", "default", "bind:", "preferred:1", "/", "close"]),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.integers(-2, 20)),
    st.binary(max_size=3),
)


@pytest.mark.parametrize("knob", [knob.name for knob in KNOBS])
@given(value=anything)
def test_any_value_is_taken_or_refused_by_a_usage_error(knob, value):
    try:
        choice = make_plan(FACTS, Goal("launch", {knob: value}))[knob]
    except UsageError as error:
        assert "but got" in str(error) or "but " in str(error)
        return
    if knob in COUNTED and choice.source == "user":
        assert choice.value >= 1
    if knob == "affinity" and choice.value is not None:
        assert set(choice.value) <= set(FACTS.limits.affinity)
        assert list(choice.value) == sorted(set(choice.value))
    if knob == "memory_policy" and choice.value is not None:
        assert set(choice.value.nodes) <= {0, 1}

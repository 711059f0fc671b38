"""The workloads in the process that runs them: what is counted, where buffers lie, on which pages."""

from __future__ import annotations

import ctypes
import mmap
import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.modules.module import register_module_forward_pre_hook

from hfaccel import native
from hfaccel.bench.memory import cases, counters, pages
from hfaccel.bench.memory.addresses import HUGE_PAGE, PAGE
from hfaccel.bench.memory.counters import Cost, Counters, scaled
from hfaccel.bench.memory.workloads import BELOW, ODD, workloads
from hfaccel.host import read_host

MIB = 1 << 20
NO_HUGE_PAGES = read_host().memory.thp not in ("always", "madvise") or native.arena is None
needs_huge_pages = pytest.mark.skipif(
    NO_HUGE_PAGES, reason="needs huge pages on request, and the native part"
)
PAGE_FAULTS = {"page_faults": (1, 2)}  # PERF_TYPE_SOFTWARE: where hardware counts nothing, the kernel does


@pytest.fixture
def threads():
    """Cases set torch's threads for their own process; here others follow."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


# Pages


@pytest.fixture
def half_huge():
    """(address, memory) of 4 MiB on a 2 MiB boundary, written; its first half alone is on a huge page."""
    memory = mmap.mmap(-1, 6 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    offset = -start % HUGE_PAGE
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.madvise(mmap.MADV_HUGEPAGE, offset, HUGE_PAGE)
    memory[:] = b"x" * len(memory)
    return start + offset, memory


def by_mapping(ranges, touched):
    return pages.by_mapping(sorted(ranges), touched, "")


@needs_huge_pages
@pytest.mark.parametrize("read", [pages.huge_shares, by_mapping])
def test_each_buffer_has_the_share_of_its_own_pages(half_huge, read):
    address, _memory = half_huge
    found = read([(address + HUGE_PAGE, HUGE_PAGE), (address, HUGE_PAGE)], True)
    assert [(b.address, b.size) for b in found.buffers] == [
        (address, HUGE_PAGE),
        (address + HUGE_PAGE, HUGE_PAGE),
    ]
    if found.source == "PAGEMAP_SCAN":
        assert [buffer.huge for buffer in found.buffers] == [1.0, 0.0]
    else:  # neighbours are read as one
        assert [buffer.huge for buffer in found.buffers] == [0.5, 0.5]


@needs_huge_pages
def test_a_buffer_on_both_kinds_has_the_share_to_the_byte(half_huge):
    address, _memory = half_huge
    found = pages.huge_shares([(address + HUGE_PAGE - 300, 400)], True)
    if found.source != "PAGEMAP_SCAN":
        pytest.skip(f"only whole mappings can be read here: {found.problem}")
    assert found.buffers[0].huge == 0.75


@needs_huge_pages
def test_few_buffers_in_a_large_mapping_are_not_diluted():
    """As in the gigabyte that mimalloc reserves: a share of the mapping would be a few percent."""
    region = native.arena.Region(256 * MIB)
    region.populate(0, 2 * MIB)
    for found in (
        pages.huge_shares([(region.address, 2 * MIB)], True),
        by_mapping([(region.address, 2 * MIB)], True),
    ):
        assert found.buffers[0].huge == 1.0, found.source


def test_more_regions_than_one_call_holds(monkeypatch):
    """Every second page is written, so none can join its neighbour; here they stand for huge ones."""
    monkeypatch.setattr(pages, "PAGE_IS_HUGE", 1 << 3)  # PAGE_IS_PRESENT
    memory = mmap.mmap(-1, 3000 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for number in range(0, 3000, 2):
        memory[number * PAGE] = 1
    try:
        found = list(pages.huge_ranges([(start, start + 3000 * PAGE)]))
    except OSError as error:
        pytest.skip(f"this kernel has no PAGEMAP_SCAN: {error}")
    assert found == [(start + n * PAGE, start + (n + 1) * PAGE) for n in range(0, 3000, 2)]


def test_what_cannot_be_read_is_told(monkeypatch):
    def refused(*_):
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(pages.fcntl, "ioctl", refused)
    memory = torch.ones(3 * MIB)
    ranges = [(memory.data_ptr(), 12 * MIB)]
    found = pages.huge_shares(ranges, True)
    assert found.source == "smaps" and "PAGEMAP_SCAN: Inappropriate ioctl" in found.problem
    assert 0 <= found.buffers[0].huge <= 1
    monkeypatch.setattr(native, "arena", None)
    monkeypatch.setattr(native, "MISSING", "the native part is missing")
    found = pages.huge_shares(ranges, True)
    assert found.source == "" and "native part is missing" in found.problem
    assert found.buffers == [(*ranges[0], None)]


# Counters


@pytest.fixture
def counting():
    made = Counters(PAGE_FAULTS)
    yield made
    made.close()


def write_pages(count):
    memory = mmap.mmap(-1, count * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[:] = b"x" * len(memory)


def test_events_of_threads_started_later_count_too(counting):
    if counting.problems:
        pytest.skip(f"nothing can be counted here: {counting.problems}")
    cost, before = Cost(), Cost()
    with counting.count(before):
        pass
    with counting.count(cost):
        thread = threading.Thread(target=write_pages, args=(500,))
        thread.start()
        thread.join()
    assert cost.events["page_faults"] >= 500 and cost.faults >= 500
    assert before.events["page_faults"] < 100
    assert cost.seconds > 0


def test_costs_add_up(counting):
    cost = Cost()
    for _ in range(2):
        with counting.count(cost):
            write_pages(300)
    assert cost.faults >= 600


def test_an_event_that_does_not_exist_is_told_and_the_others_count():
    made = Counters({"nonsense": (1, 999), **PAGE_FAULTS})
    assert "perf_event_open" in made.problems["nonsense"] and "nonsense" not in made.files
    made.close()


def test_without_the_native_part_faults_count_all_the_same(monkeypatch):
    monkeypatch.setattr(native, "arena", None)
    made, cost = Counters(), Cost()
    with made.count(cost):
        write_pages(100)
    assert set(made.problems) == set(counters.EVENTS) and not cost.events
    assert cost.faults >= 100


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_closing_gives_the_files_back():
    before = open_files()
    made = Counters(PAGE_FAULTS)
    made.close()
    assert open_files() == before


readings = st.tuples(*[st.integers(0, 1 << 40)] * 3)


@given(readings, st.integers(0, 1 << 30), st.integers(1, 1 << 30), st.integers(0, 1 << 30))
def test_a_count_stands_for_the_time_in_which_it_was_not_taken(before, count, running, waiting):
    start, enabled, ran = before
    after = (start + count, enabled + running + waiting, ran + running)
    assert scaled(before, after) == round(count * (running + waiting) / running)
    assert scaled(before, (start, enabled + running, ran)) is None  # its turn never came
    assert scaled(before, before) == 0


def test_peak_memory_is_of_this_process():
    peak = counters.memory("VmHWM")
    assert counters.memory("VmRSS") <= peak + MIB < 1 << 40  # the kernel rounds by some pages
    assert counters.memory("VmNonsense") is None


# Workloads


def test_the_rows_are_those_of_the_debate():
    assert all(512 << 10 <= size <= 1536 << 10 for size in BELOW)
    assert all(size > 2 * MIB and size % HUGE_PAGE for size in ODD)
    rows = workloads(4)
    assert len({row.name for row in rows}) == len(rows)
    forwards = [row.arguments for row in rows if row.kind == "forward"]
    assert {row["batch"] for row in forwards} >= {8, 32} and {row["length"] for row in forwards} >= {64, 512}
    assert any(row["worker"] for row in forwards)
    crews = {(row.touched, row.arguments["threads"]) for row in rows if row.kind == "buffers"}
    assert crews == {(True, 1), (True, 4), (False, 1), (False, 4)}
    assert {row.arguments["threads"] for row in workloads(1) if row.kind == "buffers"} == {1, 2}


@pytest.mark.parametrize("arena", [False, True])
@pytest.mark.parametrize("crew", [1, 3])
def test_all_buffers_are_alive_at_once_and_do_not_overlap(threads, crew, arena):
    sizes = [512 << 10, 3 * MIB]
    sample = cases.buffers(sizes, 7, touched=True, threads=crew, repeats=2, arena=arena)()
    found = sample["buffers"]
    assert sorted(buffer.size for buffer in found) == sorted([sizes[0]] * 4 + [sizes[1]] * 3)
    assert all(before.end <= after.address for before, after in pairwise(found))
    assert sample["first_seconds"] > 0 and sample["seconds"] > 0 and sample["peak"] > 0
    assert sample["threads"] == 1  # of torch: the crew are the program's own


@needs_huge_pages
def test_an_arena_is_on_huge_pages_once_it_is_touched(threads):
    arguments = {"sizes": [768 << 10, 2 * MIB + PAGE], "count": 8, "threads": 1, "repeats": 1, "arena": True}
    touched = cases.buffers(touched=True, **arguments)()
    untouched = cases.buffers(touched=False, **arguments)()
    assert touched["huge"] > 0.99 and untouched["huge"] == 0
    assert touched["process_huge"] >= sum(buffer.size for buffer in touched["buffers"])
    assert touched["first_faults"] < 1000  # 4 KiB pages would take 2,800


def test_the_same_sizes_in_every_process():
    shares = [cases._share(ODD, 20, 3, number) for number in range(3)]
    assert shares == [cases._share(ODD, 20, 3, number) for number in range(3)]
    assert sorted(size for share in shares for size in share) == sorted(ODD * 4)


@pytest.mark.parametrize("worker", [False, True])
def test_a_forward_tells_of_its_weights(threads, worker):
    config = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    arguments = {"config": {**config, "vocab_size": 1000}, "batch": 2, "length": 8, "threads": threads}
    seen: set[int] = set()
    watch = register_module_forward_pre_hook(lambda *_: seen.add(threading.get_ident()))
    try:
        sample = cases.forward(worker=worker, arena=True, **arguments)()
    finally:
        watch.remove()
    assert len(seen) == 1 and (threading.get_ident() in seen) == (not worker)
    assert sum(buffer.size for buffer in sample["buffers"]) > 1000 * 64 * 4
    assert sample["threads"] == threads
    assert sample["allocator"]


def test_a_crew_runs_each_number_in_its_own_thread():
    crew = cases.Crew(3)
    first, second = (crew.all(lambda number: (number, threading.get_ident())) for _ in range(2))
    assert first == second and len({thread for _, thread in first}) == 3
    assert cases.Crew(1).all(lambda number: threading.get_ident()) == [threading.get_ident()]
    assert cases.Crew(1, own=True).all(lambda number: threading.get_ident()) != [threading.get_ident()]

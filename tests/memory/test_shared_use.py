"""Arenas among processes and threads, after release(), and on a real pool of explicit huge pages."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import itertools
import os
import random
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import at_once

from hfaccel import memory
from hfaccel.errors import UsageError

MIB = 1 << 20
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


# Explicit huge pages


def pages(name):
    return int((POOL / name).read_text())


@pytest.fixture
def pool():
    """Eight explicit huge pages of 2 MiB, all free; given back afterwards."""
    if os.geteuid() != 0 or not os.access(POOL / "nr_hugepages", os.W_OK):
        pytest.skip("only root may make a pool of explicit huge pages, where the kernel has them")
    with (POOL / "nr_hugepages").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other runs of this test use the same pool
        before, used = pages("nr_hugepages"), pages("nr_hugepages") - pages("free_hugepages")
        try:
            (POOL / "nr_hugepages").write_text(str(used + 8))
            if pages("free_hugepages") != 8:
                pytest.skip(f"the kernel found memory for {pages('free_hugepages')} huge pages of 8")
            yield
        finally:
            gc.collect()
            (POOL / "nr_hugepages").write_text(str(before))


def test_a_tensor_uses_the_pool_and_gives_it_back(pool):
    tensor = memory.empty((6 * MIB,), dtype=torch.uint8, pages="hugetlb")
    assert pages("free_hugepages") == 5  # touched at once: a cgroup's limit would show as SIGBUS later
    assert tensor.fill_(3).sum() == 18 * MIB
    part = tensor[:10]
    del tensor
    gc.collect()
    assert pages("free_hugepages") == 5 and part.tolist() == [3] * 10
    del part
    gc.collect()
    assert pages("free_hugepages") == 8


def test_an_exhausted_pool_is_a_reason_and_transparent_pages_serve(pool):
    first = memory.Arena(10 * MIB, pages="hugetlb")
    assert (first.pages, first.problem) == ("hugetlb", "")
    second = memory.Arena(10 * MIB, pages="hugetlb")
    assert second.pages in ("thp", "default")
    assert "mmap(MAP_HUGETLB): Cannot allocate memory" in second.problem
    assert second.take((MIB,)).fill_(1).sum() == MIB
    assert pages("free_hugepages") == 3
    del first
    gc.collect()
    assert memory.Arena(16 * MIB, pages="hugetlb").pages == "hugetlb"


def test_a_model_moves_into_the_pool_and_out_again(pool):
    model = torch.nn.Linear(1000, 1000)  # 4 MB: two pages
    expected = model.weight.clone()
    packed = memory.pack_(model, pages="hugetlb")
    assert packed.problem == "" and pages("free_hugepages") == 6
    assert torch.equal(model.weight, expected)
    model.weight.data = model.weight.data.clone()
    model.bias.data = model.bias.data.clone()
    gc.collect()
    assert pages("free_hugepages") == 8


def test_pages_of_a_node_come_from_the_pool_too(pool):
    arena = memory.Arena(4 * MIB, pages="hugetlb", node=0, locked=True)
    assert arena.pages == "hugetlb" and pages("free_hugepages") == 6


def test_there_is_no_gigabyte_page_in_a_pool_of_small_ones(pool):
    arena = memory.Arena(4 * MIB, pages="hugetlb-1g")
    assert arena.pages != "hugetlb-1g" and "MAP_HUGETLB" in arena.problem
    assert arena.take((MIB,)).fill_(1).sum() == MIB


# release()


def test_tensors_of_an_arena_keep_their_values_over_release():
    arena = memory.Arena(8 * MIB)
    tensor, kept = arena.take((MIB,)).fill_(7), torch.full((MIB,), 5.0)
    model = torch.nn.Linear(500, 500)
    expected = model.weight.clone()
    memory.pack_(model)
    del arena
    memory.release()
    memory.release()
    assert (tensor == 7).all() and (kept == 5).all() and torch.equal(model.weight, expected)
    assert tensor.add_(1).sum() == 8 * MIB  # and can be written


# fork


def in_child(check):
    """The exit code of a forked child that runs `check`. It computes with one thread: no hooks here."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            torch.set_num_threads(1)
            code = 0 if check() else 2
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_sees_an_arenas_contents_and_changes_only_its_own():
    arena = memory.Arena(4 * MIB)
    tensor = arena.take((MIB // 2,)).fill_(3)

    def check():
        seen = bool((tensor == 3).all())
        tensor.fill_(9)
        more = arena.take((100,)).fill_(1)  # a child may go on taking
        return seen and tensor[0] == 9 and more.sum() == 100

    assert in_child(check) == 0
    assert (tensor == 3).all()
    assert arena.take((100,)).fill_(2).sum() == 200


def test_what_a_child_drops_stays_with_its_parent():
    tensors = [memory.empty((MIB,), pages="thp").fill_(number) for number in range(4)]

    def check():
        tensors.clear()
        gc.collect()
        return memory.release() >= 0

    assert in_child(check) == 0
    assert [int(tensor.sum()) // MIB for tensor in tensors] == [0, 1, 2, 3]


def test_a_child_may_make_arenas_while_threads_of_its_parent_take_from_one():
    arena, stop = memory.Arena(64 * MIB), threading.Event()

    def take():
        while not stop.is_set():
            with contextlib.suppress(UsageError):
                arena.take((1,))
                arena.used = 0

    threads = [threading.Thread(target=take) for _ in range(3)]
    [thread.start() for thread in threads]
    try:
        codes = [in_child(lambda: memory.Arena(MIB).take((10,)).fill_(1).sum() == 10) for _ in range(10)]
    finally:
        stop.set()
        [thread.join() for thread in threads]
    assert codes == [0] * 10


# Threads


def test_threads_that_take_from_one_arena_get_memory_of_their_own():
    """A switch between reading where the arena ends and moving it would give one place to two threads."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    arena, taken = memory.Arena(16 * MIB), [[] for _ in range(8)]

    def take(number):
        generator = random.Random(number)
        for _ in range(300):
            taken[number].append(arena.take((generator.randint(1, 700),), torch.int32))
            taken[number][-1].fill_(number)

    try:
        at_once(8, take)
    finally:
        sys.setswitchinterval(interval)
    assert all((tensor == number).all() for number in range(8) for tensor in taken[number])
    places = sorted((t.data_ptr(), t.data_ptr() + 4 * t.numel()) for mine in taken for t in mine)
    assert len(places) == 8 * 300
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))


def test_threads_that_make_and_drop_arenas_leave_nothing_behind():
    def mappings():
        return sum(1 for _ in open("/proc/self/maps"))  # noqa: PTH123

    failures = []

    def work(number):
        generator, kept = random.Random(number), []
        for step in range(150):
            tensor = memory.empty((generator.randint(1, 1 << 20),), dtype=torch.uint8, pages="thp")
            tensor[:1000] = number
            kept.append(tensor)
            if len(kept) > 5:
                dropped = kept.pop(generator.randrange(len(kept)))
                if not (dropped[:1000] == number).all():
                    failures.append((number, step))

    gc.collect()
    before = mappings()
    at_once(6, work)
    gc.collect()
    assert failures == []
    assert mappings() - before < 30  # 900 arenas came and went; the threads' stacks stay

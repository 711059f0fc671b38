"""The workloads. hfaccel.bench.worker calls these functions in the process of one configuration.

Each function returns a function that takes the one sample of that process. A sample says what the first use
of the memory costs and what later uses cost, where the buffers lie, and what is on huge pages.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from hfaccel import configuration
from hfaccel.apply.verify import allocator_in_use
from hfaccel.bench.memory.addresses import covered
from hfaccel.bench.memory.counters import Cost, Counters, memory
from hfaccel.bench.memory.pages import huge_shares, read_smaps
from hfaccel.bench.pairs import Sample
from hfaccel.memory import Arena, pack_, padded

Value = TypeVar("Value")
EVERYTHING = (1 << 63) - 1  # bytes: the whole address space of a process
SETTLES = 1  # forwards after the first that do not count, in which a heap finds its size
FORWARDS = 2  # forwards that count


def buffers(
    sizes: Sequence[int],
    count: int,
    touched: bool,
    threads: int,
    repeats: int,
    configure: bool = False,
    arena: bool = False,
) -> Callable[[], Sample]:
    """`count` buffers of the sizes (bytes) in turn, shuffled, allocated by `threads` at once.

    All buffers are alive at the same time. Touched buffers are written and then summed up; others are only
    allocated and freed, which is what the allocator itself costs.
    """
    counters = _start(configure, threads)
    torch.set_num_threads(1)  # the threads here are the program's own
    crew = Crew(threads)
    shares = [_share(sizes, count, threads, number) for number in range(threads)]
    held: list[list[torch.Tensor]] = [[] for _ in range(threads)]
    allocate = _from_arena if arena else _from_malloc

    def use(number: int) -> None:
        held[number] = allocate(shares[number])
        for buffer in held[number] if touched else ():
            buffer.fill_(1)
        for buffer in held[number] if touched else ():
            buffer.sum()

    def sample() -> Sample:
        costs: list[Cost] = []
        found: Sample = {}
        for _ in range(1 + repeats):
            costs.append(cost := Cost())
            with counters.count(cost):
                crew.all(use)
            found = _look((tensor for tensors in held for tensor in tensors), touched)
            with counters.count(cost):
                crew.all(lambda number: held[number].clear())
        return {**_summary(costs[0], costs[1:], counters), **found}

    return sample


def _share(sizes: Sequence[int], count: int, threads: int, number: int) -> list[int]:
    """The sizes of one thread, the same in every process."""
    wanted = [sizes[index % len(sizes)] for index in range(count)]
    random.Random(0).shuffle(wanted)
    return wanted[number::threads]


def _from_malloc(sizes: Sequence[int]) -> list[torch.Tensor]:
    return [torch.empty(size // 8, dtype=torch.int64) for size in sizes]


def _from_arena(sizes: Sequence[int]) -> list[torch.Tensor]:
    arena = Arena(sum(padded(size) for size in sizes))
    return [arena.take((size // 8,), torch.int64) for size in sizes]


def forward(
    config: dict[str, int],
    batch: int,
    length: int,
    threads: int,
    worker: bool = False,
    configure: bool = False,
    arena: bool = False,
) -> Callable[[], Sample]:
    """Forwards of transformers' own BertModel with random weights on (batch, length) random tokens.

    The buffers of the sample are the model's weights. `worker`: the forwards run in another thread than the
    main thread, as in a web server.
    """
    counters = _start(configure, threads)
    torch.set_num_threads(threads)
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(**config)).eval()
    if arena:
        pack_(model)
    tokens = torch.randint(5, 1000, (batch, length), generator=torch.Generator().manual_seed(1))
    crew = Crew(1, own=worker)

    def run(number: int) -> None:
        with torch.inference_mode():
            model(tokens)

    def sample() -> Sample:
        costs = []
        for _ in range(1 + SETTLES + FORWARDS):
            costs.append(cost := Cost())
            with counters.count(cost):
                crew.all(run)
        found = _look(parameter.detach() for parameter in model.parameters())
        return {**_summary(costs[0], costs[1 + SETTLES :], counters), **found}

    return sample


def _start(configure: bool, threads: int) -> Counters:
    counters = Counters()  # before torch starts any thread
    if configure:
        configuration.configure(threads=threads)
    return counters


class Crew:
    """Threads that stay, each with a number. A single thread is the main thread, unless `own` is set."""

    def __init__(self, threads: int, own: bool = False) -> None:
        self._pools = [ThreadPoolExecutor(1) for _ in range(threads if threads > 1 or own else 0)]

    def all(self, function: Callable[[int], Value]) -> list[Value]:
        """Call the function once in every thread, at the same time, and wait for all."""
        if not self._pools:
            return [function(0)]
        running = [pool.submit(function, number) for number, pool in enumerate(self._pools)]
        return [future.result() for future in running]


def _summary(first: Cost, again: Sequence[Cost], counters: Counters) -> Sample:
    names = set().union(*(cost.events for cost in again))
    return {
        "first_seconds": first.seconds,
        "first_faults": first.faults,
        "seconds": statistics.median(cost.seconds for cost in again),
        "faults": statistics.median(cost.faults for cost in again),
        "events": {
            name: statistics.median(cost.events.get(name, 0) for cost in again) for name in sorted(names)
        },
        "uncounted": dict(counters.problems),
        "peak": memory("VmHWM"),
        "allocator": allocator_in_use(),
        "threads": torch.get_num_threads(),
    }


def _look(tensors: Iterable[torch.Tensor], touched: bool = True) -> Sample:
    """Where the tensors lie, and how much of them and of the whole process is on huge pages."""
    ranges = [(tensor.data_ptr(), tensor.numel() * tensor.element_size()) for tensor in tensors]
    huge = huge_shares(ranges, touched)
    found = {"buffers": huge.buffers, "huge": covered(huge.buffers), "source": huge.source}
    try:
        _, process = read_smaps(0, EVERYTHING)
    except OSError as error:
        return {**found, "process_huge": None, "unread": huge.problem or str(error.args[-1])}
    return {**found, "process_huge": process, "unread": huge.problem}

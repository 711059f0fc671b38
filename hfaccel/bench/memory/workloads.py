"""The workloads of the debate on the kernel's mailing list, one row each. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

KIB, MIB = 1 << 10, 1 << 20

BELOW = (512 * KIB, 768 * KIB, 1 * MIB, 1152 * KIB, 1536 * KIB)
# Above a huge page, and no multiples of it: older kernels aligned these sizes, newer kernels do not.
ODD = (2 * MIB + 4 * KIB, 2 * MIB + 260 * KIB, 2560 * KIB + 64, 3 * MIB, 5 * MIB - 12 * KIB)

SHAPES = ((8, 64), (8, 512), (16, 256), (32, 64), (32, 512))  # batch, input length
BERT_BASE: Mapping[str, int] = {}  # transformers' own default configuration
SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "vocab_size": 1000,
}


class Workload(NamedTuple):
    """`kind` is a function of hfaccel/bench/memory/cases.py, called with `arguments`.

    `touched` buffers are drawn; buffers that were never written have no pages.
    """

    name: str
    kind: str
    arguments: Mapping[str, object]
    touched: bool = True


def workloads(threads: int, quick: bool = False) -> tuple[Workload, ...]:
    """All workloads. `threads` compute in a forward; as many, but at least two, allocate at once."""
    several = max(2, threads)
    repeats, counts = (1, (10, 10)) if quick else (7, (60, 50))
    sizes = (("512 KiB to 1.5 MiB", BELOW, counts[0]), ("odd above 2 MiB", ODD, counts[1]))
    rows = [
        _buffers(name, chosen, count, touched, crew, repeats)
        for name, chosen, count in sizes
        for touched in (True, False)
        for crew in (1, several)
    ]
    if quick:
        few = (rows[0], rows[5], rows[6])  # small by one thread; odd by several; odd, untouched
        return (*few, _forward("small BERT", SMALL, 2, 16, threads))
    forwards = [_forward("BERT-base", BERT_BASE, *shape, threads) for shape in SHAPES]
    return (*rows, *forwards, _forward("BERT-base", BERT_BASE, 16, 256, threads, worker=True))


def _buffers(
    name: str, sizes: tuple[int, ...], count: int, touched: bool, threads: int, repeats: int
) -> Workload:
    text = f"{name}, {'touched' if touched else 'untouched'}, {threads} thread{'s' * (threads > 1)}"
    arguments = {"sizes": sizes, "count": count, "touched": touched, "threads": threads, "repeats": repeats}
    return Workload(text, "buffers", arguments, touched)


def _forward(
    name: str, config: Mapping[str, int], batch: int, length: int, threads: int, worker: bool = False
) -> Workload:
    text = f"{name} ({batch},{length})" + (", worker thread" if worker else "")
    arguments = {"config": dict(config), "batch": batch, "length": length, "worker": worker}
    return Workload(text, "forward", {**arguments, "threads": threads})

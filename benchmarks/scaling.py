"""hfaccel, eager and OpenVINO over threads, shapes and precisions: `python benchmarks/scaling.py --help`.

BERT-base with random weights. Each engine is a process of its own; all are pinned to the same CPUs, one for
each thread, which is checked. They take turns within one cell (batch, sequence length); what counts is the
median of the ratios within a turn. Results are written after each cell: what an interrupted run measured is
kept. A few minutes on many cores:

    python benchmarks/scaling.py --threads 16 --cells 1,32 1,128 8,128 --rounds 5 --calls 1 --results FOLDER
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import caps
import instances
import scaling_picture
from environments import at_hand
from hfaccel.errors import HfaccelError
from hfaccel.host import read_host
from report import RESULTS, check, save
from scaling_bars import BAR_OF_INSTANCES, verdicts
from turns import ENGINES, PEERS, Engines, medians, ratios, sides

Cell = tuple[int, int]  # batch, sequence length
CELLS: list[Cell] = [(1, 8), (1, 32), (1, 64), (1, 128), (1, 192), (1, 512), (8, 128), (32, 128)]
THREADS = (2, 4, 8, 16)


def default_threads(cpus: int) -> list[int]:
    """Those of THREADS that there are CPUs for; one thread too where that leaves fewer than two."""
    fitting = [count for count in THREADS if count <= cpus]
    return fitting if len(fitting) > 1 else [1, *fitting]


def chosen_cpus(threads: int, cores: tuple[tuple[int, ...], ...]) -> list[int]:
    """CPUs for so many threads: one of each core before a second of any."""
    ranked = sorted((rank, place, cpu) for place, core in enumerate(cores) for rank, cpu in enumerate(core))
    return sorted(cpu for _, _, cpu in ranked[:threads])


def schedule(cells: list[Cell], rounds: int) -> list[Cell]:
    """Which shape each sample of a process takes: a cell's turns in a row, one more than count."""
    return [cell for cell in cells for _ in range(rounds + 1)]


def check_equal(facts: Mapping[str, Mapping[str, Any]], cpus: list[int]) -> None:
    """Raise unless every engine has these CPUs and as many threads."""
    for name, told in facts.items():
        if told["threads"] != len(cpus) or told["cpus"] != cpus:
            raise HfaccelError(
                f"every engine must have {len(cpus)} threads on the CPUs {cpus}, but {name} has "
                f"{told['threads']} on {told['cpus']}; unset the variables that give it others"
            )


def engines_here(wanted: list[str], find: Callable[[str], str] = at_hand) -> tuple[list[str], list[str]]:
    """Those of `wanted` that are installed; and those that are not."""
    present = [engine for engine in wanted if find(engine)]
    return present, [engine for engine in wanted if engine not in present]


@contextlib.contextmanager
def pinned(cpus: list[int]) -> Iterator[None]:
    """Processes that are started within inherit these CPUs before they start any thread."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(threads: int, precision: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each cell, as soon as it is measured."""
    host = options.host
    cpus = chosen_cpus(threads, host.topology.cores(host.limits.affinity))
    work = {
        "model": "bert-base",
        "shapes": schedule(options.cells, options.rounds),
        "seconds": options.seconds,
        "calls": options.calls,
    }
    variables = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    with tempfile.TemporaryDirectory() as name:
        with pinned(cpus):
            folder = Path(name)
            running = Engines(sides(precision, options.engines, "forward", work, folder, variables, at_hand))
        try:
            for cell in options.cells:
                yield row_of(cell, threads, precision, running, cpus, options)
        finally:
            running.stop()


def row_of(
    cell: Cell, threads: int, precision: str, running: Engines, cpus: list[int], options: argparse.Namespace
) -> dict[str, Any]:
    turns = [running.round(number) for number in range(options.rounds + 1)][1:]
    check_equal(running.facts, cpus)
    base = f"hfaccel {precision}"
    started = base in running.workers
    case = f"({cell[0]},{cell[1]})"
    return {
        "name": f"{precision} {case}, threads: {threads}",
        "threads": threads,
        "precision": precision,
        "case": case,
        "ms": medians(turns),
        "ratio": {name: round(ratio, 3) for name, ratio in ratios(turns, base).items()} if started else {},
        "ratios": [{name: round(turn[name] / turn[base], 3) for name in turn} for turn in turns]
        if started
        else [],
        "facts": running.facts,
        "failed": running.failed,
        "not_capped": not_capped(running.facts, options),
    }


def not_capped(facts: Mapping[str, Mapping[str, Any]], options: argparse.Namespace) -> dict[str, str]:
    """Side -> why its instructions are not capped as asked, of those that are not."""
    reasons = {}
    for name, told in facts.items():
        engine, precision = name.split()
        kernels = told.get("kernels", "")
        reasons[name] = caps.not_capped(engine, precision, options.isa, options.host.processor, kernels)
    return {name: reason for name, reason in reasons.items() if reason}


def measure_instances(options: argparse.Namespace) -> dict[str, Any]:
    """One process with all cores against as many instances as cores: (8,128) in bf16, forwards per second."""
    cores = len(options.host.topology.cores(options.host.limits.affinity))
    one, many = "one instance", f"{cores} instances"
    ways = {
        one: instances.Start((instances.LAUNCHER,), 1),
        many: instances.Start((instances.LAUNCHER, "--ninstances", str(cores)), cores),
    }
    turns, facts = instances.take_turns(ways, instances.Work(8, 128, "bf16"), options.rounds)
    name = f"(8,128) bf16: one process with {cores} cores against {many}"
    return {
        "name": name,
        "bar": BAR_OF_INSTANCES,
        **instances.against(turns, one, many),
        "instances": facts,
    }


def cell_of(text: str) -> Cell:
    """ "8,128" is batch 8, sequence length 128."""
    batch, length = (int(part) for part in text.strip("()").split(","))
    return batch, length


def parse() -> argparse.Namespace:
    host = read_host()
    cpus = len(host.limits.affinity)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=default_threads(cpus))
    parser.add_argument("--cells", type=cell_of, nargs="*", default=CELLS, help="BATCH,LENGTH ...")
    parser.add_argument("--precisions", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["eager", "openvino"])
    parser.add_argument("--rounds", type=int, default=5, help="turns that count, after one that does not")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a sample, at least")
    parser.add_argument("--calls", type=int, default=3, help="of a sample, at least")
    parser.add_argument("--instances", action="store_true", help="one process against one on each core, too")
    parser.add_argument("--isa", choices=list(caps.CAPS), help="cap every engine's instructions (caps.py)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON and the picture")
    parser.add_argument("--picture", choices=["svg", "png", "none"], default="svg")
    options = parser.parse_args()
    if min(options.threads) < 1 or max(options.threads) > cpus:
        parser.error(
            f"`1 <= threads <= {cpus}` must hold, the CPUs of this process, but got {options.threads}"
        )
    if options.rounds < 1:
        parser.error(f"`rounds >= 1` must hold, but got {options.rounds}")
    options.host = host
    return options


def prepare(options: argparse.Namespace) -> None:
    """Cap the instructions, and leave out what cannot be measured here, with the reason."""
    caps.enforce(options.isa, options.host.processor)
    flags = options.host.processor.isa
    options.precisions, left_out = caps.precisions_here(options.precisions, flags, options.isa)
    options.engines, absent = engines_here(options.engines)
    if absent:
        left_out += f"\nnot installed: {', '.join(absent)}; benchmarks/backends.py --setup does that"
    if left_out:
        print(left_out.strip(), file=sys.stderr, flush=True)


def rows_of(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for threads in options.threads if options.cells else []:
        for precision in options.precisions:
            yield from measure(threads, precision, options)
    if options.instances and "bf16" in options.precisions:
        yield measure_instances(options)


def main() -> int:
    options = parse()
    prepare(options)
    name = f"scaling-{options.isa}" if options.isa else "scaling"
    rows: list[dict[str, Any]] = []
    for row in rows_of(options):
        rows.append(row)
        file = save(name, rows, options.results)
        print(row["name"], row.get("ms") or row["per_second"], file=sys.stderr, flush=True)
    if not rows:
        raise SystemExit(
            "nothing was measured: of the cells, precisions and --instances asked for none is left"
        )
    if options.picture != "none" and options.cells:
        scaling_picture.draw(file, file.with_suffix(f".{options.picture}"))
    for side, reason in {
        side: why for row in rows for side, why in row.get("not_capped", {}).items()
    }.items():
        print(f"{side} is not capped: {reason}")
    judged = verdicts(rows)
    if not judged:
        print(
            "no bar was judged: no row has both hfaccel and a rival with the instructions that were asked for"
        )
        return 0
    kernels = ", ".join(kernel_sets(rows)) or "unknown"
    return check(f"BERT-base, time over hfaccel's; kernel set {kernels}", judged)


def kernel_sets(rows: list[dict[str, Any]]) -> list[str]:
    told = {facts["kernels"] for row in rows for facts in row.get("facts", {}).values() if "kernels" in facts}
    return sorted(told)


if __name__ == "__main__":
    sys.exit(main())

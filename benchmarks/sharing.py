"""Memory of BERT-base's weights in several workers, all added: of a model that is sent, and of a saved one.

Each worker computes and reads every weight. What counts is its proportional share (Pss in /proc/PID/smaps) of
the mapping that holds the weights: pages that n processes have count 1/n in each. The process that shares has
them, too, so its workers add up to less than one copy.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from report import check, save

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"quantization": "int8"},
}
NAMES = ("memfd:hfaccel-weights", "/weights-")  # of the mappings that share() and load() make
PATIENCE = 300  # seconds: a worker that failed ends the others


def pss() -> int:
    """Bytes of the weights' mapping that count for this process."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            inside = any(name in line for name in NAMES)
        elif inside and first == "Pss:":
            total += int(line.split()[1]) * 1024
    return total


def work(given: Any, barrier: Any, answers: Any) -> None:
    import hfaccel

    torch.set_num_threads(1)
    model = hfaccel.load(given) if isinstance(given, str) else given
    with torch.inference_mode():
        model(torch.arange(1, 17)[None])
    for tensor in (*model.parameters(), *model.buffers()):
        getattr(tensor, "memory", tensor).sum()
    barrier.wait(PATIENCE)
    answers.put(pss())
    barrier.wait(PATIENCE)


def total(given: Any, workers: int) -> int:
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers", "hfaccel.saving"])
    barrier, answers = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=work, args=(given, barrier, answers), daemon=True) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    measured = [answers.get(timeout=PATIENCE) for _ in processes]
    for process in processes:
        process.join()
    return sum(measured)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12, help="of the model; less for a try")
    arguments = parser.parse_args()
    rows = []
    for precision, options in PRECISIONS.items():
        for way, bytes_of_all, size in measure(arguments, options):
            rows.append(
                {
                    "name": f"{precision}, {way}",
                    "bar": 1.05,
                    "measured": bytes_of_all / size,
                    "MiB": size >> 20,
                }
            )
    save("sharing", rows)
    return check(f"copies of BERT-base's weights in {arguments.workers} workers", rows, at_most=True)


def measure(arguments: argparse.Namespace, options: dict[str, Any]) -> list[tuple[str, int, int]]:
    from transformers import BertConfig, BertModel

    import hfaccel

    model = hfaccel.optimize(BertModel(BertConfig(num_hidden_layers=arguments.layers)).eval(), **options)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights have no checkpoint to be made again from
        hfaccel.save(model, folder)
        (file,) = Path(folder).glob("weights-*")
        loaded = ("load(folder) in each", total(folder, arguments.workers), file.stat().st_size)
    shared = hfaccel.memory.shared(hfaccel.memory.share(model))
    assert shared is not None and shared.outcome.applied, shared
    return [("share(model), sent", total(model, arguments.workers), shared.nbytes), loaded]


if __name__ == "__main__":
    sys.exit(main())

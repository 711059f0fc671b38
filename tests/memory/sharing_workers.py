"""A program whose workers share a model; prints what each of them saw, as JSON. For test_sharing.py."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

import hfaccel
from hfaccel.memory import shared

PRECISIONS = {"float32": {}, "bfloat16": {"dtype": torch.bfloat16}, "int8": {"quantization": "int8"}}
SIZES = dict(hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048)
TOKENS = torch.arange(1, 20)[None]
PATIENCE = 120  # seconds: a worker that failed ends the others


def result(model):
    with torch.inference_mode():
        return model(TOKENS)[0].double().abs().sum().item()


def pss(start, size):
    """Bytes of the range that count for this process: each page divided by how many processes have it."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            low, high = (int(number, 16) for number in first.split("-"))
            inside = start <= low and high <= start + size
        elif inside and first == "Pss:":
            total += int(line.split()[1]) * 1024
    return total


def refusals(descriptor):
    """Errors of every way to change the memory for others."""
    import mmap

    def number(action):
        try:
            action()
        except OSError as error:
            return errno.errorcode[error.errno]
        return "none"

    return [
        number(lambda: os.pwrite(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR), b"x", 0)),
        number(lambda: os.ftruncate(descriptor, 0)),
        number(lambda: mmap.mmap(descriptor, 4096)),
    ]


def work(model, number, barrier, answers):
    known = shared(model)
    first = result(model)
    for tensor in (*model.parameters(), *model.buffers()):
        getattr(tensor, "memory", tensor).sum()  # all of it is needed
    barrier.wait(PATIENCE)
    mine = pss(known.address, known.nbytes)
    barrier.wait(PATIENCE)
    changed = None
    if number == 0:
        with torch.no_grad():
            model.encoder.layer[0].output.dense.weight.mul_(2)
            model.encoder.layer[0].output.dense.bias.add_(1)
        changed = result(model)
    barrier.wait(PATIENCE)
    answers.put([first, mine, changed, result(model), refusals(known.descriptor), type(model).__name__])


def run(method, model, count):
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["transformers", "hfaccel.memory.sharing", "hfaccel.engine"])
    barrier, answers = context.Barrier(count), context.Queue()
    workers = [
        context.Process(target=work, args=(model, number, barrier, answers), daemon=True)
        for number in range(count)
    ]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=PATIENCE) for _ in workers]
    for worker in workers:
        worker.join()
    return found


def main():
    report = {}
    for precision, arguments in PRECISIONS.items():
        torch.manual_seed(0)
        model = hfaccel.optimize(BertModel(BertConfig(vocab_size=20000, **SIZES)).eval(), **arguments)
        torch.set_num_threads(1)  # as forked workers compute
        expected = result(model)
        hfaccel.memory.share(model)
        methods = {"fork": 8, "forkserver": 8, **({"spawn": 1} if precision == "int8" else {})}
        report[precision] = {
            "expected": expected,
            "after": result(model),
            "nbytes": shared(model).nbytes,
            "line": hfaccel.report(model).to_dict()["outcomes"][-1],
            "workers": {method: run(method, model, count) for method, count in methods.items()},
            "own": result(model),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    sys.exit(main())

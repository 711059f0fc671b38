"""Memory of a decoder of 0.5 billion weights: while it is optimized, while it generates, once it is saved.

Shapes of Qwen2-0.5B, random weights in bfloat16, loaded from a checkpoint as programs do. What counts is what
the process has above one that has imported torch, transformers and hfaccel, without pages of files:
transformers maps the checkpoint and hfaccel.load the saved weights, and the system takes such pages back when
it needs memory. Each measurement is a process of its own. It ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import hfaccel
from generation_models import build, prompt
from report import check, save

MODEL = "qwen2-0.5b"
KINDS = ("none", "int8-weight-only", "int4-weight-only")
BARS = {"peak": 1.2, "running": 700.0, "load": 0.2, "copies": 1.1}
WORKERS = 8
MIB = 2**20


def memory(*names: str) -> int:
    """Bytes that /proc/self/status says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(names))


def own() -> int:
    return memory("RssAnon:", "RssShmem:")


@contextmanager
def watched() -> Iterator[list[int]]:
    """The highest `own` is appended to the list at the end."""
    highest, ended = [own()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            highest[0] = max(highest[0], own())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield highest
    finally:
        ended.set()
        thread.join()


def generate(model: Any) -> None:
    ids = torch.tensor([prompt(MODEL, 64)])
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False)


def optimized(checkpoint: str, kind: str) -> dict[str, float]:
    from transformers import AutoModelForCausalLM

    base = own()
    model = AutoModelForCausalLM.from_pretrained(f"{checkpoint}/stock", dtype=torch.bfloat16)
    size = sum(weight.nbytes for weight in model.parameters())
    begun = time.perf_counter()
    options = {} if kind == "none" else {"quantization": kind}
    with watched() as highest:
        model = hfaccel.optimize(model, inplace=True, **options)
    seconds = time.perf_counter() - begun
    generate(model)
    running, pages = (own() - base) / MIB, memory("RssFile:") / MIB
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hfaccel.save(model, f"{checkpoint}/{kind}")
    return {"seconds": seconds, "peak": (highest[0] - base) / size, "running": running, "file": pages}


def loaded(checkpoint: str, kind: str) -> dict[str, float]:
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401 (imports are not what is measured)

    import hfaccel.saving

    begun = time.perf_counter()
    model = hfaccel.load(f"{checkpoint}/{kind}")
    seconds = time.perf_counter() - begun
    generate(model)
    return {"load": seconds, "all_once_loaded": memory("VmRSS:") / MIB}


def copies(checkpoint: str, kind: str) -> dict[str, float]:
    """Of the weights, in several workers."""
    from sharing import total

    (file,) = Path(f"{checkpoint}/{kind}").glob("weights-*")
    return {"copies": total(f"{checkpoint}/{kind}", WORKERS) / file.stat().st_size}


STEPS: dict[str, Callable[[str, str], dict[str, float]]] = {
    "optimized": optimized,
    "loaded": loaded,
    "copies": copies,
}


def apart(step: str, checkpoint: str, kind: str) -> dict[str, float]:
    """One of STEPS in a fresh process."""
    command = [sys.executable, __file__, "--step", step, "--checkpoint", checkpoint, "--kind", kind]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    told: dict[str, float] = json.loads(output.splitlines()[-1])
    return told


def rows_of(kind: str, checkpoint: str) -> list[dict[str, Any]]:
    told: dict[str, float] = {}
    for step in STEPS:
        told |= apart(step, checkpoint, kind)
    labels = {
        "peak": "peak of optimize(), of the checkpoint",
        "running": "MiB while it generates",
        "load": "seconds of load()",
        "copies": f"copies of the weights in {WORKERS} workers",
    }
    four = kind == "int4-weight-only"
    return [
        {"name": f"{kind}: {label}", "bar": BARS[name], "measured": told[name], "all": told}
        for name, label in labels.items()
        if four or name != "running"
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    for name in ("--step", "--checkpoint", "--kind"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step](options.checkpoint, options.kind)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        build(MODEL).to(torch.bfloat16).save_pretrained(f"{folder}/stock")
        rows = [row for kind in options.kinds for row in rows_of(kind, folder)]
    save("generation-memory", rows)
    return check("a decoder of 0.5 billion weights", rows, at_most=True)


if __name__ == "__main__":
    sys.exit(main())

"""From exec to the first result: hfaccel.load of a saved BERT-base against stock from_pretrained.

Each sample is a fresh process, the two in turn; the clock runs from before the process is made until it says
that it has the result for (1,16). Files are in the page cache for both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import check, save

STOCK = """
from transformers import BertModel
model = BertModel.from_pretrained(sys.argv[1]).eval()
"""
LOAD = """
import hfaccel
hfaccel.load  # imports torch
from transformers import BertModel
start = time.perf_counter()
model = hfaccel.load(sys.argv[1])
loaded = time.perf_counter() - start
"""
PROGRAM = """
import json, sys, time
loaded = None
{load}
import torch
with torch.inference_mode():
    value = model(torch.arange(1, 17)[None])[0].sum().item()
print(json.dumps(loaded), flush=True)
"""
PRECISIONS = ("float32", "bfloat16", "int8")
PREPARE = """
import sys, torch, hfaccel
from pathlib import Path
from transformers import BertConfig, BertModel
folder, layers = Path(sys.argv[1]), int(sys.argv[2])
BertModel(BertConfig(num_hidden_layers=layers)).save_pretrained(folder / "checkpoint")
precisions = {"float32": {}, "bfloat16": {"dtype": torch.bfloat16}, "int8": {"quantization": "int8"}}
for name, options in precisions.items():
    model = hfaccel.optimize(BertModel.from_pretrained(folder / "checkpoint").eval(), **options)
    hfaccel.save(model, folder / name)
"""


def run(program: str, folder: Path) -> dict[str, float]:
    start = time.perf_counter()
    command = [sys.executable, "-c", PROGRAM.format(load=program), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
    if process.returncode != 0:
        raise SystemExit(f"a process ended with {process.returncode}; it ran\n{command[2]}")
    return {"seconds": seconds, "load": json.loads(line) or 0.0}


def compare(folder: Path, precision: str, pairs: int) -> list[dict[str, Any]]:
    samples = [(run(STOCK, folder / "checkpoint"), run(LOAD, folder / precision)) for _ in range(pairs + 1)][
        1:
    ]
    stock, ours = ([sample["seconds"] for sample in side] for side in zip(*samples, strict=True))
    loads = [sample["load"] for _, sample in samples]
    return [
        {"name": f"{precision}: load(), s", "bar": 0.15, "measured": statistics.median(loads), "all": loads},
        {
            "name": f"{precision}: exec to first result, of stock's",
            "bar": 1.0,
            "measured": statistics.median(b / a for a, b in zip(stock, ours, strict=True)),
            "base_ms": statistics.median(stock) * 1e3,
            "fast_ms": statistics.median(ours) * 1e3,
        },
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7, help="pairs of process starts for each precision")
    parser.add_argument("--layers", type=int, default=12, help="of the model; less for a try")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-c", PREPARE, name, str(arguments.layers)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        rows = [row for each in PRECISIONS for row in compare(Path(name), each, arguments.pairs)]
    save("coldstart", rows)
    return check("cold start of BERT-base", rows, at_most=True)


if __name__ == "__main__":
    sys.exit(main())

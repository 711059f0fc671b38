"""What hfaccel costs before the first forward: import, hfaccel-run, optimize() and its memory."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from report import check, save

LAUNCHER = str(Path(sys.executable).with_name("hfaccel-run"))

OPTIMIZE = """
import time, torch
from transformers import BertConfig, BertModel
model = BertModel(BertConfig()).eval()
size = sum(parameter.numel() * 4 for parameter in model.parameters())
from hfaccel import optimize
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
before, start = peak(), time.perf_counter()
fast = optimize(model)
print(time.perf_counter() - start, (size + peak() - before) / size)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of process starts")
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "empty.py"
        script.write_text("")
        launched = difference([sys.executable, str(script)], [LAUNCHER, str(script)], pairs)
    imported = difference([sys.executable, "-c", ""], [sys.executable, "-c", "import hfaccel"], pairs)
    seconds, memory = optimizing(5)
    rows = [
        {"name": "import hfaccel, ms", "bar": 30, "measured": imported * 1e3},
        {"name": "hfaccel-run over python, empty script, ms more", "bar": 80, "measured": launched * 1e3},
        {"name": "optimize() of BERT-base, s", "bar": 1.5, "measured": seconds},
        {"name": "peak memory during optimize(), of the model", "bar": 1.3, "measured": memory},
    ]
    save("startup", rows)
    return check("before the first forward", rows, at_most=True)


def difference(base: Sequence[str], fast: Sequence[str], pairs: int) -> float:
    """Median of how many seconds more `fast` takes, the two run in turn."""
    return statistics.median(run(fast) - run(base) for _ in range(pairs))


def run(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start


def optimizing(times: int) -> tuple[float, float]:
    """Medians of the seconds and of the peak memory (model and what optimize() adds, over the model)."""
    command = [sys.executable, "-c", OPTIMIZE]
    outputs = [
        subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(times)
    ]
    seconds, memory = zip(*(map(float, output.split()) for output in outputs), strict=True)
    return statistics.median(seconds), statistics.median(memory)


if __name__ == "__main__":
    sys.exit(main())

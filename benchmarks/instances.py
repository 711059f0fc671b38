"""Two instances on a core each against one on both, and against run_cpu's: summed throughput at (1,16).

BERT-base, stock model everywhere. All ways of starting run at once and take turns: the instances of one way
count forwards for some seconds while the others sleep. Ratios are taken within a turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from report import check, save

LAUNCHER = str(Path(sys.executable).with_name("hfaccel-run"))
RUN_CPU = (sys.executable, "-m", "torch.backends.xeon.run_cpu")


Facts = dict[str, list[dict[str, Any]]]  # by way of starting, of each instance


class Start(NamedTuple):
    """A way of starting: what stands in front of the script, and how many instances that gives."""

    launcher: tuple[str, ...]
    instances: int


class Work(NamedTuple):
    """What every instance computes: BERT-base on tokens without padding, in a precision of cases.build."""

    batch: int = 1
    length: int = 16
    optimized: str = ""  # stock where empty


WAYS = {
    "one instance": Start((LAUNCHER,), 1),
    "hfaccel-run --ninstances 2": Start((LAUNCHER, "--ninstances", "2"), 2),
    "run_cpu --ninstances 2": Start((*RUN_CPU, "--ninstances", "2", "--ncores-per-instance", "1"), 2),
}
SECONDS = 2.0
WARM = 10  # forwards before the first turn
POLL = 0.1  # seconds: whoever waits must not take time from those whose turn it is


def job(folder: Path, work: Work) -> None:
    """One instance: for each turn that it finds in the folder, writes how many forwards per second it did."""
    import torch

    from cases import build

    model = build("bert-base", work.optimized)
    shape = (work.batch, work.length)
    tokens = torch.randint(1000, 20000, shape, generator=torch.Generator().manual_seed(0))
    turn = 0
    with torch.inference_mode():
        for _ in range(WARM):
            model(tokens)
        facts = {"cpus": sorted(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}
        write(folder / f"ready-{os.getpid()}", facts)
        while not (folder / "stop").exists():
            if not (folder / f"go-{turn}").exists():
                time.sleep(POLL)
                continue
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < SECONDS:
                model(tokens)
                count += 1
            write(folder / f"done-{turn}-{os.getpid()}", {"rate": count / (time.perf_counter() - start)})
            turn += 1


def write(path: Path, result: dict[str, Any]) -> None:
    """At once as a whole: somebody waits for the file."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(result))
    temporary.rename(path)


class Way:
    """A way of starting, with its instances running and waiting for their turn."""

    def __init__(self, start: Start, folder: Path, work: Work) -> None:
        self.instances = start.instances
        self.folder = folder
        folder.mkdir()
        command = [*start.launcher, __file__, "--job", str(folder), "--work", json.dumps(work)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.ready = self.wait_for("ready-*")  # what each instance tells about itself

    def wait_for(self, pattern: str) -> list[dict[str, Any]]:
        while len(files := list(self.folder.glob(pattern))) < self.instances:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.process.args} ended with {self.process.returncode}")
            time.sleep(POLL)
        return [json.loads(file.read_text()) for file in files]

    def rate(self, turn: int) -> float:
        (self.folder / f"go-{turn}").touch()
        return sum(float(done["rate"]) for done in self.wait_for(f"done-{turn}-*"))

    def stop(self) -> None:
        (self.folder / "stop").touch()
        self.process.wait()


def take_turns(ways: Mapping[str, Start], work: Work, turns: int) -> tuple[list[dict[str, float]], Facts]:
    """Forwards per second of each way, summed over its instances, turn by turn; and the instances' facts."""
    running: dict[str, Way] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number, (name, start) in enumerate(ways.items()):
                running[name] = Way(start, Path(folder, str(number)), work)
            rates = [{name: way.rate(turn) for name, way in running.items()} for turn in range(turns)]
        finally:
            for way in running.values():
                way.stop()
    return rates, {name: way.ready for name, way in running.items()}


def against(turns: list[dict[str, float]], way: str, other: str) -> dict[str, Any]:
    """How many times the work of `other` `way` does: the median over the turns."""
    ratios = [turn[way] / turn[other] for turn in turns]
    rates = {name: round(statistics.median(turn[name] for turn in turns), 2) for name in (other, way)}
    return {"measured": statistics.median(ratios), "per_second": rates, "ratios": ratios}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job(arguments.job, Work(*arguments.work))
        return 0
    turns, facts = take_turns(WAYS, Work(), arguments.pairs)
    two = "hfaccel-run --ninstances 2"
    rows = [
        {"name": f"against {other}", "bar": bar, **against(turns, two, other)}
        for other, bar in (("one instance", 1.25), ("run_cpu --ninstances 2", 1.0))
    ]
    save("instances", [*rows, {"cpus": [ready["cpus"] for ready in facts[two]]}])
    print({way: rate for row in rows for way, rate in row["per_second"].items()}, file=sys.stderr)
    return check("two instances, BERT-base (1,16), summed throughput", rows)


if __name__ == "__main__":
    sys.exit(main())

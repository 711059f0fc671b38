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
from pathlib import Path
from typing import Any

from report import check, save

LAUNCHER = str(Path(sys.executable).with_name("hfaccel-run"))
RUN_CPU = (sys.executable, "-m", "torch.backends.xeon.run_cpu")
WAYS = {  # what stands in front of the script, and how many instances that gives
    "one instance": ((LAUNCHER,), 1),
    "hfaccel-run --ninstances 2": ((LAUNCHER, "--ninstances", "2"), 2),
    "run_cpu --ninstances 2": ((*RUN_CPU, "--ninstances", "2", "--ncores-per-instance", "1"), 2),
}
SECONDS = 2.0
POLL = 0.1  # seconds: whoever waits must not take time from those whose turn it is


def job(folder: Path, instances: int) -> None:
    """One instance: for each turn that it finds in the folder, writes how many forwards per second it did."""
    import torch

    from cases import build

    model = build("bert-base", False)
    tokens = torch.randint(1000, 20000, (1, 16), generator=torch.Generator().manual_seed(0))
    turn = 0
    with torch.inference_mode():
        for _ in range(20):
            model(tokens)
        write(folder / f"ready-{os.getpid()}", {"cpus": sorted(os.sched_getaffinity(0))})
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

    def __init__(self, way: str, folder: Path) -> None:
        launcher, self.instances = WAYS[way]
        self.folder = folder
        folder.mkdir()
        command = [*launcher, __file__, "--job", str(folder), "--instances", str(self.instances)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.cpus = [ready["cpus"] for ready in self.wait_for("ready-*")]

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--instances", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job(arguments.job, arguments.instances)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        ways = {way: Way(way, Path(folder, str(number))) for number, way in enumerate(WAYS)}
        turns = [{name: way.rate(turn) for name, way in ways.items()} for turn in range(arguments.pairs)]
        for way in ways.values():
            way.stop()
    two = "hfaccel-run --ninstances 2"
    rows = []
    for other, bar in (("one instance", 1.25), ("run_cpu --ninstances 2", 1.0)):
        ratios = [turn[two] / turn[other] for turn in turns]
        rates = {way: round(statistics.median(turn[way] for turn in turns), 2) for way in (other, two)}
        ratio = statistics.median(ratios)
        rows.append(
            {"name": f"against {other}", "bar": bar, "measured": ratio, "per_second": rates, "ratios": ratios}
        )
    save("instances", [*rows, {"cpus": ways[two].cpus}])
    print({way: rate for row in rows for way, rate in row["per_second"].items()}, file=sys.stderr)
    return check("two instances, BERT-base (1,16), summed throughput", rows)


if __name__ == "__main__":
    sys.exit(main())

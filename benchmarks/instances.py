"""Two instances on a core each against one on both, and against run_cpu's: summed throughput at (1,16).

BERT-base, stock model everywhere. Each way of starting runs a job that warms up, waits until all of its
instances are ready, and then counts forwards for some seconds. The ways take turns; ratios are taken within
a turn.
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
SECONDS = 4.0


def job(folder: Path, instances: int) -> None:
    """One instance: writes how many forwards per second it did."""
    import torch

    from cases import build

    model = build("bert-base", False)
    tokens = torch.randint(1000, 20000, (1, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for _ in range(20):
            model(tokens)
        (folder / f"ready-{os.getpid()}").touch()
        while len(list(folder.glob("ready-*"))) < instances:
            time.sleep(0.01)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            model(tokens)
            count += 1
    result = {"rate": count / (time.perf_counter() - start), "cpus": sorted(os.sched_getaffinity(0))}
    (folder / f"result-{os.getpid()}").write_text(json.dumps(result))


def run(way: str) -> dict[str, Any]:
    """Summed throughput of one way, and the CPUs of each instance."""
    launcher, instances = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher, __file__, "--job", folder, "--instances", str(instances)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        results = [json.loads(path.read_text()) for path in Path(folder).glob("result-*")]
    assert len(results) == instances
    return {"rate": sum(result["rate"] for result in results), "cpus": [result["cpus"] for result in results]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--instances", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job(arguments.job, arguments.instances)
        return 0
    turns = [{way: run(way) for way in WAYS} for _ in range(arguments.pairs)]
    two = "hfaccel-run --ninstances 2"
    rows = []
    for other, bar in (("one instance", 1.25), ("run_cpu --ninstances 2", 1.0)):
        ratios = [turn[two]["rate"] / turn[other]["rate"] for turn in turns]
        rates = {
            way: round(statistics.median(turn[way]["rate"] for turn in turns), 2) for way in (other, two)
        }
        ratio = statistics.median(ratios)
        rows.append(
            {"name": f"against {other}", "bar": bar, "measured": ratio, "per_second": rates, "ratios": ratios}
        )
    save("instances", [*rows, {"cpus": turns[-1][two]["cpus"]}])
    print({way: rate for row in rows for way, rate in row["per_second"].items()}, file=sys.stderr)
    return check("two instances, BERT-base (1,16), summed throughput", rows)


if __name__ == "__main__":
    sys.exit(main())

"""A container with a CPU quota of one CPU: plain python against hfaccel-run, BERT-base (1,128), stock model.

Each side runs in a cgroup of its own, which this makes (version 1, so /sys/fs/cgroup/cpu must be writable)
and removes. Besides the times, nr_throttled is counted: how often the kernel stopped the side's threads.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from hfaccel.bench import Side, compare
from report import check, save

CASES = str(Path(__file__).with_name("cases.py")) + ":forward_under_quota"
LAUNCHER = str(Path(sys.executable).with_name("hfaccel-run"))
CGROUP = Path("/sys/fs/cgroup/cpu")
PERIOD = 100_000  # microseconds, the kernel's default
BAR = 1.25
BAR_THROTTLED = 1  # periods per second


@contextlib.contextmanager
def group(name: str, cpus: float) -> Iterator[Path]:
    """A cgroup with a quota; the processes in it must have ended before it is left."""
    path = CGROUP / f"{name}-{os.getpid()}"
    path.mkdir()
    try:
        (path / "cpu.cfs_period_us").write_text(str(PERIOD))
        (path / "cpu.cfs_quota_us").write_text(str(int(cpus * PERIOD)))
        yield path
    finally:
        path.rmdir()


def inside(path: Path, program: str) -> tuple[str, ...]:
    """A launcher that enters the group and becomes `program`."""
    return ("/bin/sh", "-c", f'echo $$ > {path}/cgroup.procs; exec "$0" "$@"', program)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    pairs = parser.parse_args().pairs
    shape = {"model": "bert-base", "batch": 1, "length": 128, "seconds": 4.0}
    with group("plain", 1) as first, group("hfaccel", 1) as second:
        base = Side("python", CASES, {**shape, "group": str(first)}, launcher=inside(first, sys.executable))
        fast = Side("hfaccel-run", CASES, {**shape, "group": str(second)}, launcher=inside(second, LAUNCHER))
        result = compare(base, fast, pairs=pairs)
    throttled = [max(sample["throttled"] for sample in result.fast_samples)]
    stock = [max(sample["throttled"] for sample in result.base_samples)]
    rows = [
        {"name": "p50 under a quota of one CPU", "bar": BAR, "measured": result.ratio, **result.to_dict()}
    ]
    periods = [
        {
            "name": "periods throttled, per second",
            "bar": BAR_THROTTLED,
            "measured": throttled[0],
            "stock": stock[0],
        }
    ]
    save("quota", [*rows, *periods])
    print(f"python was throttled in {stock[0]:.1f} periods per second", file=sys.stderr)
    missed = check("BERT-base (1,128), quota of one CPU", rows)
    return missed | check("nr_throttled of hfaccel-run", periods, at_most=True)


if __name__ == "__main__":
    sys.exit(main())

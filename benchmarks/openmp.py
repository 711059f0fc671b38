"""Intel's OpenMP against torch's own: optimized BERT-base, short and long. Needs intel-openmp."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hfaccel.bench import Side, compare
from report import check, save

CASES = str(Path(__file__).with_name("cases.py")) + ":forward"
LAUNCHER = str(Path(sys.executable).with_name("hfaccel-run"))
NEVER_WORSE = 0.97  # what noise leaves of 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    pairs = parser.parse_args().pairs
    rows = []
    for length in (16, 128):
        shape = {"model": "bert-base", "batch": 1, "length": length, "optimized": True}
        sides = [
            Side(runtime, CASES, shape, launcher=(LAUNCHER, "--omp-runtime", runtime))
            for runtime in ("default", "intel")
        ]
        result = compare(*sides, pairs=pairs)
        name = f"bert-base (1,{length})"
        rows.append({"name": name, "bar": NEVER_WORSE, "measured": result.ratio, **result.to_dict()})
    save("openmp", rows)
    return check("Intel's OpenMP against torch's own, times faster", rows)


if __name__ == "__main__":
    sys.exit(main())

"""First touch of 512 MiB, one thread: from malloc, on 4 KiB pages, against hfaccel.memory.empty(pages="thp").

Where the kernel's mode of transparent huge pages is `always`, malloc's mapping has them as well.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hfaccel.bench import Side, compare
from report import check, save

CASES = str(Path(__file__).with_name("cases.py")) + ":first_touch"
SIZE = 512 << 20
BAR_RATIO = 3.0
BAR_MS = 45.0  # where malloc takes MALLOC_MS; on another machine in proportion
MALLOC_MS = 139.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of samples")
    parser.add_argument("--mib", type=int, default=SIZE >> 20)
    arguments = parser.parse_args()
    size = arguments.mib << 20
    result = compare(
        Side("malloc", CASES, {"size": size}),
        Side("arena", CASES, {"size": size, "arena": True}),
        pairs=arguments.pairs,
    )
    name = f"first touch of {arguments.mib} MiB"
    ratio = {"name": f"{name}, malloc over arena", "bar": BAR_RATIO, "measured": result.ratio}
    scaled = MALLOC_MS / result.ratio
    time = {"name": f"{name}, ms where malloc takes {MALLOC_MS:.0f}", "bar": BAR_MS, "measured": scaled}
    rows = [{**ratio, **result.to_dict()}]
    save("touch", [*rows, time])
    return check("first touch, times faster", rows) | check("first touch, ms", [time], at_most=True)


if __name__ == "__main__":
    sys.exit(main())

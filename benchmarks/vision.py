"""Vision and audio models against eager ones, in pairs. `python benchmarks/vision.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hfaccel.bench import Side, compare
from hfaccel.tables import render
from report import save
from vision_cases import MODELS

CASES = str(Path(__file__).with_name("vision_cases.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of samples per row")
    parser.add_argument("--only", default="", help="rows whose name contains this, e.g. 'resnet-50 bf16'")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images or sounds at once")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "int8"])
    parser.add_argument("--threads", type=int, default=0, help="on both sides; one to each core")
    parser.add_argument("--tiny", action="store_true", help="one layer of each, to try the command")
    arguments = parser.parse_args()
    rows, cells = [], []
    for model in MODELS:
        for precision in arguments.precisions:
            for batch in arguments.batches:
                name = f"{model} {precision} ({batch})"
                if arguments.only not in name:
                    continue
                case = {"model": model, "batch": batch, "threads": arguments.threads, "tiny": arguments.tiny}
                result = compare(
                    Side("eager", f"{CASES}:forward", case),
                    Side("hfaccel", f"{CASES}:forward", {**case, "optimized": precision}),
                    pairs=arguments.pairs,
                )
                rows.append({"name": name, "measured": result.ratio, **result.to_dict()})
                print(f"{name}: {result.ratio:.2f} times faster", file=sys.stderr, flush=True)
    for row in rows:
        times = f"{row['base_ms']:.1f} -> {row['fast_ms']:.1f} ms"
        cells.append([row["name"], f"{row['measured']:.2f}", times])
    print(render("vision and audio against eager fp32", ["case", "times faster", "medians"], cells))
    if not arguments.tiny:
        save("vision", rows)


if __name__ == "__main__":
    main()

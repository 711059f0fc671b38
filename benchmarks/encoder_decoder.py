"""Generation with an encoder and a decoder against eager bfloat16, in pairs: a summary with beams, and a
transcript. It ends with 1 if a bar is missed. `python benchmarks/encoder_decoder.py --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from encoder_decoder_cases import MODELS
from hfaccel.bench import Side, compare
from report import check, save

CASES = str(Path(__file__).with_name("encoder_decoder_cases.py"))
BAR = 1.8  # times faster
# Threads that wait do not spin, for the other side's sake.
QUIET = {"OMP_WAIT_POLICY": "passive"}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of samples per row")
    parser.add_argument("--only", default="", help="rows whose name contains this, e.g. 't5'")
    parser.add_argument("--threads", type=int, default=0, help="on both sides; one to each core")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the command")
    return parser.parse_args(arguments)


def sides(model: str, options: argparse.Namespace) -> tuple[Side, Side]:
    case = {"model": model, "threads": options.threads, "tiny": options.tiny}
    names = {"eager bf16": False, "hfaccel bf16": True}
    base, fast = (
        Side(name, f"{CASES}:generate", {**case, "optimized": optimized}, environment=QUIET)
        for name, optimized in names.items()
    )
    return base, fast


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    rows = []
    for model in (name for name in MODELS if options.only in name):
        result = compare(*sides(model, options), pairs=options.pairs)
        rows.append({"name": model, "measured": result.ratio, "bar": BAR, **result.to_dict()})
        print(f"{model}: {result.ratio:.2f} times faster", file=sys.stderr, flush=True)
    missed = check("generation with an encoder: times faster than eager bf16", rows)
    if not options.tiny:
        save("encoder_decoder", rows)
    return missed


if __name__ == "__main__":
    sys.exit(main())

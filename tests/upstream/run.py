"""Runs the tests of transformers or sentence-transformers with hfaccel and without, and compares:
`python tests/upstream/run.py transformers --checkout FOLDER [TYPE ...]`. See README.md.

No failure may appear that stock does not have, but those that known.py explains.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from known import DESELECTED, REASONS
from sources import BUILD, lay_out
from stand_ins import make_stand_ins
from targets import SENTENCE_TRANSFORMERS, TYPES
from verdict import Run, Verdict, compare, read

Options = argparse.Namespace
SECONDS = 120  # for one test


def main() -> int:
    options = _parse()
    folder = lay_out(options.library, options.checkout)
    stand_ins = make_stand_ins(BUILD)
    targets = options.targets or (TYPES if options.library == "transformers" else SENTENCE_TRANSFORMERS)
    totals: dict[str, int] = dict.fromkeys(("tests", "stock", "new", "known", "missing", "optimized"), 0)
    used: set[str] = set()
    empty = 0  # targets of which nothing was tested
    for target in targets:
        files = _files(folder, options.library, target)
        stock = _run(folder, files, "stock", target, stand_ins, options)
        fast = _run(folder, files, options.mode, target, stand_ins, options)
        verdict = compare(stock, fast, REASONS)
        verdict = _twice(verdict, folder, target, stand_ins, options)
        used |= set(verdict.known.values())
        _show(target, stock, fast, verdict)
        empty += not stock.count("passed") or not fast.optimized
        for name, count in _counts(stock, fast, verdict).items():
            totals[name] += count
    print(", ".join(f"{name}: {count}" for name, count in totals.items()))
    if not options.targets and not options.only and options.mode == "eval":
        unused = [p for p in REASONS if p not in used and ("sentence" in p) == ("sent" in options.library)]
        for pattern in unused:
            print(f"known.py: no failure matches {pattern}; remove the entry")
    return bool(totals["new"] or totals["missing"] or empty)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=("transformers", "sentence-transformers"))
    parser.add_argument(
        "targets", nargs="*", metavar="TYPE", help="model types, or files below tests/; all by default"
    )
    parser.add_argument("--checkout", type=Path, help="a checkout of the installed version's tag")
    parser.add_argument(
        "--mode", choices=("auto", "eval"), default="eval", help="what is optimized (README.md)"
    )
    parser.add_argument("--only", default="", help="pytest's -k")
    parser.add_argument(
        "--keep-stock", action="store_true", help="use the results of an earlier run of stock"
    )
    return parser.parse_args()


def _files(folder: Path, library: str, target: str) -> list[str]:
    if library == "transformers" and "/" not in target:
        return sorted(
            str(each.relative_to(folder)) for each in folder.glob(f"tests/models/{target}/test_modeling_*.py")
        )
    return [f"tests/{target}"]


def _run(
    folder: Path,
    tests: list[str],
    mode: str,
    target: str,
    stand_ins: dict[str, str],
    options: Options,
) -> Run:
    """One process of pytest. What it was about when it ended without a word has failed."""
    results = BUILD / "results" / f"{options.library}-{target.replace('/', '-')}-{mode}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    if mode == "stock" and options.keep_stock and results.exists():
        return read(results.read_text().splitlines())
    environment = {
        **os.environ,
        "UPSTREAM_MODE": mode,
        "UPSTREAM_RESULTS": str(results),
        "PYTHONPATH": str(Path(__file__).parent),
        "HFACCEL_AUTO": "0" if mode == "stock" else "1",
        "HF_HUB_OFFLINE": "1",
        **stand_ins,
    }
    quiet = [
        "-q",
        "--no-header",
        "--disable-warnings",
        "-o",
        "log_cli=false",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
    ]
    limits = ["-p", "plugin", f"--timeout={SECONDS}", *(f"--deselect={each}" for each in DESELECTED)]
    if options.only:
        limits += ["-k", options.only]
    command = [sys.executable, "-m", "pytest", *quiet, *limits, *tests]
    with (results.with_suffix(".log")).open("w") as log:
        status = subprocess.run(
            command, cwd=folder, env=environment, stdout=log, stderr=log, check=False
        ).returncode
    run = read(results.read_text().splitlines())
    if not run.finished:
        run.outcomes[target] = "failed"
        run.messages[target] = f"the process ended with status {status}; see {results.with_suffix('.log')}"
    return run


def _twice(
    verdict: Verdict, folder: Path, target: str, stand_ins: dict[str, str], options: Options
) -> Verdict:
    """Stock once more, alone, for what failed: a test that fails now and then by itself says nothing."""
    if not verdict.new or target in verdict.new:
        return verdict
    tests = list(dict.fromkeys(verdict.new))
    again = argparse.Namespace(**{**vars(options), "keep_stock": False, "only": ""})
    stock = _run(folder, tests, "stock", f"{target}-again", stand_ins, again)
    new = {test: message for test, message in verdict.new.items() if stock.outcomes.get(test) != "failed"}
    return Verdict(new, verdict.known, verdict.missing)


def _counts(stock: Run, fast: Run, verdict: Verdict) -> dict[str, int]:
    return {
        "tests": stock.count("passed") + stock.count("failed"),
        "stock": stock.count("failed"),
        "new": len(verdict.new),
        "known": len(verdict.known),
        "missing": len(verdict.missing),
        "optimized": fast.optimized,
    }


def _show(target: str, stock: Run, fast: Run, verdict: Verdict) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in _counts(stock, fast, verdict).items())
    print(f"{target}: {counts}")
    print("  kernels called:", ", ".join(f"{name} x {count}" for name, count in fast.computed.items()))
    print("  applied:", ", ".join(f"{what} x {count}" for what, count in fast.applied.items()) or "nothing")
    for reason, count in fast.left.items():
        print(f"  left as it is x {count}: {reason}")
    for test, message in verdict.new.items():
        print(f"  NEW {test}\n    " + "\n    ".join(message.splitlines()[-4:]))
    for test in verdict.missing:
        print(f"  MISSING {test}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

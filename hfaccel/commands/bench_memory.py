"""hfaccel bench memory: where each allocator places buffers, what that costs, and what huge pages change.

Every figure comes from a fresh process. The configurations take turns, and results are ratios to the default
of the same round. docs/memory.md tells how to read them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from hfaccel.bench.memory import Setting, find_ways, measure, probe_alignment, workloads
from hfaccel.bench.memory.addresses import readable
from hfaccel.bench.memory.picture import check_picture, draw
from hfaccel.bench.memory.rounds import Document
from hfaccel.bench.memory.ways import cleared, select
from hfaccel.bench.memory.workloads import Workload
from hfaccel.errors import UsageError
from hfaccel.host import HostFacts, read_host
from hfaccel.plan import cpu_budget
from hfaccel.tables import render

FORMAT = "hfaccel bench memory 1"  # what a saved report begins with
# First is the first use of the memory in its process, later the median of those after it.
COLUMNS = (
    "",
    "huge\npages",
    "aligned",
    "median\ngap",
    "faults\nfirst",
    "\nlater",
    "ms\nfirst",
    "times\nfaster",
    "ms\nlater",
    "times\nfaster",
    "peak\nMiB",
)
UNREAD = {  # by where the shares of huge pages were read
    "PAGEMAP_SCAN": "Huge pages of the whole process cannot be read here",
    "smaps": "Huge pages are read by mapping, which tells less than by page",
    "": "Huge pages cannot be read here",
}
MISSES = "dTLB\nmisses"  # a column where they can be counted


def run(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.save and not Path(options.save).resolve().parent.is_dir():
        raise UsageError(f"a file must be in a folder that exists, but got {options.save!r}")
    if options.picture:
        check_picture(options.picture)
    report = load(options.read) if options.read else _measured(options)
    if options.save:
        Path(options.save).write_text(json.dumps(report) + "\n", encoding="utf-8")
    if options.picture:
        draw(report, options.picture)
    print(json.dumps(report) if options.json else as_text(report))
    return int(any(result["failure"] for workload in report["workloads"] for result in workload["results"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hfaccel bench memory", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print JSON, with all addresses, not tables")
    parser.add_argument("--quick", action="store_true", help="few small buffers and a small model: a trial")
    parser.add_argument("--only", default="", metavar="NAMES", help="configurations, separated by commas")
    parser.add_argument("--workload", default="", metavar="TEXT", help="workloads whose name contains TEXT")
    parser.add_argument("--rounds", type=int, help="processes per figure; 3, with --quick 1")
    parser.add_argument("--threads", type=int, help="threads that compute; as hfaccel-run chooses")
    parser.add_argument("--picture", metavar="FILE", help="draw the address space (.svg, .png, .pdf)")
    parser.add_argument("--save", metavar="FILE", help="write the JSON to FILE as well")
    parser.add_argument("--read", metavar="FILE", help="show a saved report; nothing is measured")
    return parser


def load(path: str) -> Document:
    """A report that `--save` or `--json` wrote. Raises UsageError for anything else."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"a saved report must be JSON, but {path!r} is not ({error})") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise UsageError(f"a saved report must be one of `hfaccel bench memory --save`, but {path!r} is not")
    return report


# Measuring


def _measured(options: argparse.Namespace) -> Document:
    facts = read_host()
    threads = cpu_budget(facts).threads if options.threads is None else options.threads
    if threads < 1:
        raise UsageError(f"`threads >= 1` must hold, but got {threads}")
    ways = find_ways(facts, threads)
    chosen = select(ways, filter(None, options.only.split(",")))
    rounds = options.rounds if options.rounds is not None else 1 if options.quick else 3
    setting = Setting(chosen, _wanted(workloads(threads, options.quick), options.workload), rounds)
    count = len(setting.workloads) * rounds * sum(not way.missing for way in chosen)
    with _progress(count) as progress:
        results = measure(setting, progress)
    ways_found = [way.to_dict() for way in chosen]
    return {**_header(facts, threads, rounds, options.quick), "ways": ways_found, "workloads": results}


def _wanted(rows: Sequence[Workload], text: str) -> tuple[Workload, ...]:
    wanted = tuple(row for row in rows if text in row.name)
    if not wanted:
        names = "; ".join(row.name for row in rows)
        raise UsageError(
            f"some workload's name must contain --workload, but got {text!r}; there are: {names}"
        )
    return wanted


def _header(facts: HostFacts, threads: int, rounds: int, quick: bool) -> Document:
    alignment = probe_alignment()
    return {
        "format": FORMAT,
        "kernel": facts.kernel,
        "alignment": {**alignment._asdict(), "text": str(alignment)},
        "thp": facts.memory.thp,
        "thp_defrag": facts.memory.thp_defrag,
        "processor": facts.processor.model_name,
        "versions": {name: version(name) for name in ("hfaccel", "torch", "transformers")},
        "python": sys.version.split()[0],
        "libc": f"{facts.libc} {facts.libc_version}".strip(),
        "threads": threads,
        "rounds": rounds,
        "quick": quick,
        "not_inherited": list(cleared(os.environ)),
    }


@contextmanager
def _progress(count: int) -> Iterator[Callable[[str], None]]:
    """A line on standard error where that is a terminal. Call what this yields before each measurement."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=count, completed=-1)  # the first call completes no measurement
        yield lambda text: bar.update(task, description=text, advance=1)


# Showing


def as_text(report: Document) -> str:
    lines = [
        f"Linux {report['kernel']} {report['alignment']['text']}.",
        f"Transparent huge pages: {report['thp']} (defrag {report['thp_defrag']}). "
        f"Threads: {report['threads']}. Rounds: {report['rounds']}.",
        *(f"{way['name']} was left out: {way['missing']}." for way in report["ways"] if way["missing"]),
        *_reasons(report),
    ]
    return "\n".join([*lines, "", *map(_table, report["workloads"])]).rstrip()


def _table(workload: Document) -> str:
    results = workload["results"]
    counted = any(result.get("events") for result in results)
    rows = [[*_row(result), *([_misses(result)] if counted else [])] for result in results]
    return render(workload["name"], (*COLUMNS, MISSES) if counted else COLUMNS, rows)


def _misses(result: Document) -> str | None:
    events = [count for count in result.get("events", {}).values() if count is not None]
    return f"{sum(events):,.0f}" if events else None


def _reasons(report: Document) -> list[str]:
    """Why a column is empty, each reason once."""
    results = [result for workload in report["workloads"] for result in workload["results"]]
    reasons: dict[str, None] = {}
    for result in results:
        for event, reason in result.get("uncounted", {}).items():
            reasons[f"{event} cannot be counted here: {reason}."] = None
        if result.get("unread"):
            reasons[f"{UNREAD[result['source']]}: {result['unread']}."] = None
        if result["failure"]:
            reasons[f"Failed: {result['failure']}."] = None
    return list(reasons)


def _row(result: Document) -> list[object]:
    if "layout" not in result:
        return [result["way"], "failed", *[None] * (len(COLUMNS) - 2)]
    layout = result["layout"]
    return [
        result["way"],
        _number(result["huge"], ".0%"),
        _number(layout["aligned"], ".0%"),
        readable(layout["gaps"]["median"]),
        f"{result['first_faults']:,.0f}",
        f"{result['faults']:,.0f}",
        f"{result['first_seconds'] * 1e3:.1f}",
        _number(result["first_ratio"], ".2f"),
        f"{result['seconds'] * 1e3:.1f}",
        _number(result["again_ratio"], ".2f"),
        None if result["peak"] is None else f"{result['peak'] / 2**20:.0f}",
    ]


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)

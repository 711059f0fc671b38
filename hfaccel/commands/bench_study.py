"""hfaccel bench MODEL_OR_SCRIPT: a grid of settings against plain transformers, each in fresh processes.

Sides take turns, results are compared with those of plain transformers, and every finished cell is kept in
the result file: the same command goes on where it was stopped. docs/bench.md tells how to read the figures.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace

from hfaccel.bench import grid, results, side, study
from hfaccel.bench.grid import Axes
from hfaccel.bench.pairs import Sample, Side
from hfaccel.bench.results import Document
from hfaccel.bench.side import Ground
from hfaccel.bench.study import Study
from hfaccel.bench.work import Script, Work
from hfaccel.bench.workers import Limits, WatchedWorker
from hfaccel.commands import bench_tables
from hfaccel.commands.bench_options import Options, parse
from hfaccel.commands.bench_progress import shown
from hfaccel.errors import HfaccelError, UsageError
from hfaccel.host import HostFacts, Tree, read_host
from hfaccel.plan import cpu_budget

INTERRUPTED = 130
OF_A_SCRIPT: Sample = {"backends": {"torch": ""}}  # what else a script uses is its own affair


def run(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="hfaccel-bench-") as folder:
            return _study(plan(options, read_host(), folder, arguments), options)
    except KeyboardInterrupt:
        print(f"hfaccel: stopped; the same command goes on from {options.path}", file=sys.stderr)
        return INTERRUPTED


def _study(planned: Study, options: Options) -> int:
    if options.dry_run:
        print(bench_tables.cells(planned))
        return 0
    try:
        with shown(sys.stderr) as progress:
            _add_limits(planned, options, progress.tell)
            study.run(planned, progress)
    finally:  # after Ctrl-C too: what was measured is there
        print(bench_tables.results(planned.document))
        print(f"results: {planned.path}")
    return int(any(cell["status"] in ("failed", "wrong") for cell in planned.document["cells"]))


# The plan


def plan(options: Options, facts: HostFacts, folder: str, command: list[str]) -> Study:
    """All that can be decided before anything is measured. Raises UsageError for what breaks a rule."""
    without = side.cleared(os.environ)
    ground = Ground(options.subject, cpu_budget(facts).threads, options.seconds, folder, without)
    found = OF_A_SCRIPT if options.script else describe(ground, _backends_to_ask(options), options.timeout)
    axes, works = works_of(options, found)
    cells = grid.cells(works, grid.settings(axes))
    problems = {cell: grid.problem(cell, facts, found["backends"]) for cell in cells}
    size = grid.group_size(study.free_mib(facts, _available), study.side_mib(found.get("weights_mib")))
    document = _document(options, axes, facts, command)
    time = Limits(options.timeout, options.timeout)
    return Study(ground, cells, problems, size, options.pairs, time, document, options.path)


def describe(ground: Ground, backends: tuple[str, ...], timeout: float) -> Sample:
    """What a process that loads torch knows of the model and the backends."""
    found = _ask(side.describing(ground, backends), timeout)
    if found.get("kind") == "other":
        raise UsageError(
            f"a model must be given token ids, but {ground.subject!r} is not; "
            "measure a script that uses the model"
        )
    return found


def _ask(asked: Side, timeout: float) -> Sample:
    """The one sample of a process. Raises UsageError with the last line that the process wrote."""
    worker = None
    try:
        worker = WatchedWorker(asked, Limits(timeout, timeout))
        return worker.sample()
    except HfaccelError as error:
        raise UsageError(str(error).partition(": ")[2] or str(error)) from None
    finally:
        if worker is not None:
            worker.kill()


def _backends_to_ask(options: Options) -> tuple[str, ...]:
    usual = ("torch",) if options.quick else ("torch", "onnxruntime", "openvino")
    return options.axes.backends or usual


def _usable(problems: dict[str, str]) -> tuple[str, ...]:
    """Of the usual backends, those that can run here."""
    return tuple(name for name, problem in problems.items() if not problem) or ("torch",)


def works_of(options: Options, found: Sample) -> tuple[Axes, list[Work]]:
    """The axes without gaps, and the works that follow from them."""
    given = replace(options.axes, backends=options.axes.backends or _usable(found["backends"]))
    if options.script:
        return grid.completed(given, "script", options.quick, None), [Script(options.script)]
    kind = "texts" if options.texts else found["kind"]
    axes = grid.completed(given, kind, options.quick, found["longest"])
    if options.texts:
        return axes, grid.text_works(options.texts, options.text_count, options.task, axes)
    return axes, grid.shapes(axes) if kind == "encoder" else grid.generations(axes)


def _document(options: Options, axes: Axes, facts: HostFacts, command: list[str]) -> Document:
    """A new result, or the one that the file has, to be continued."""
    subject = " ".join(options.script) or options.subject
    document = results.new(subject, grid.BASELINE, axes.to_dict(), ["hfaccel", "bench", *command])
    document |= {"host": results.host_of(facts), "versions": study.versions()}
    if options.path.exists():
        document = results.continued(results.read(options.path), document, options.path)
    if not options.dry_run:
        results.write(document, options.path)  # before hours are spent on what cannot be kept
    return document


def _add_limits(planned: Study, options: Options, tell: Callable[[str], None]) -> None:
    """The limits of the machine, once for a file. A script has no use for them."""
    if planned.document["limits"] is not None or options.script or not options.roofline:
        return
    tell("measuring the limits of the machine")
    try:
        planned.document["limits"] = _ask(side.limits(planned.ground), options.timeout)["limits"]
    except UsageError as error:
        print(f"hfaccel: the limits of this machine stay unknown: {error}", file=sys.stderr)


def _available() -> int | None:
    kib = Tree().number_after("/proc/meminfo", "MemAvailable:")
    return None if kib is None else kib * 1024

"""hfaccel tune: find the settings that are best for a model or a script here, and write them as a profile.

Every trial is kept in the storage: the same command goes on where it was stopped. docs/tune.md tells more.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hfaccel.bench import conditions, results, side, study
from hfaccel.bench.pairs import Sample
from hfaccel.bench.side import Ground
from hfaccel.bench.work import Generation, Script, Shapes, Texts, Work, describe
from hfaccel.bench.workers import Limits
from hfaccel.commands import bench_study
from hfaccel.commands.tune_options import Options, parse
from hfaccel.errors import HfaccelError
from hfaccel.host import HostFacts, read_host
from hfaccel.plan import cpu_budget
from hfaccel.plan.profile import kind_of
from hfaccel.tables import render
from hfaccel.tune.leaders import Standing, duel, leaders
from hfaccel.tune.machines import ModelMachine
from hfaccel.tune.outcome import Outcome, profile, text, tuning
from hfaccel.tune.scripts import ScriptMachine
from hfaccel.tune.search import Search
from hfaccel.tune.space import Asked, Space, make_space
from hfaccel.tune.storage import check_installed, open_study
from hfaccel.tune.trials import Trial
from hfaccel.writing import replace_text

if TYPE_CHECKING:
    from rich.progress import Progress

INTERRUPTED = 130
BACKENDS = ("torch", "onnxruntime", "openvino")  # asked unless others are named; inductor compiles for long


@dataclass(frozen=True)
class Task:
    """All that is decided before anything is measured."""

    options: Options
    facts: HostFacts
    work: Work
    space: Space
    machine: ModelMachine | ScriptMachine

    def outcome(self, found: list[Trial], standings: list[Standing], notes: tuple[str, ...] = ()) -> Outcome:
        unverified = getattr(self.machine, "unverified", "")
        return Outcome(
            self.options.subject,
            self.work.label(),
            self.options.objective,
            self.unit,
            self.space,
            found,
            standings,
            unverified,
            notes,
        )

    @property
    def unit(self) -> str:
        if isinstance(self.machine, ScriptMachine) and self.options.objective.kind == "report":
            return "" if self.machine.reports else "s"
        return self.work.unit if self.options.objective.kind == "throughput" else self.options.objective.unit

    def identity(self) -> dict[str, object]:
        """What trials in one storage have in common."""
        return {
            "subject": self.options.subject,
            "work": describe(self.work),
            "optimize": self.options.optimize,
            "objective": str(self.options.objective),
            "axes": [[axis.name, list(axis.values)] for axis in self.space.axes],
            "host": kind_of(self.facts)._asdict(),
            "versions": study.versions(),
        }


def run(arguments: list[str]) -> int:
    options = parse(arguments)
    check_installed()
    try:
        with tempfile.TemporaryDirectory(prefix="hfaccel-tune-") as folder:
            task = prepare(options, folder)
            if options.dry_run:
                print(_dry(task))
                return 0
            return _tune(task, arguments)
    except KeyboardInterrupt:  # before the first trial, or during the report
        print("hfaccel: stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def prepare(options: Options, folder: str) -> Task:
    """Raises UsageError for what breaks a rule."""
    facts, without = read_host(), side.cleared(os.environ)
    throughput = options.objective.kind == "throughput"
    if options.script:
        space = make_space(facts, Asked(throughput, backends=(), work="script", fixed=options.fixed))
        machine = ScriptMachine(
            options.script, options.objective, Path(folder), options.timeout, without, options.optimize
        )
        return Task(options, facts, Script(options.script), space, machine)
    ground = Ground(options.model, cpu_budget(facts).threads, options.seconds, folder, without)
    found = bench_study.describe(ground, options.backends or BACKENDS, options.timeout)
    work = _work(options, found)
    asked = Asked(throughput, options.accuracy, _usable(options, found), work.kind, options.fixed)
    space = make_space(facts, asked)
    limits = Limits(options.timeout, options.timeout)
    return Task(options, facts, work, space, ModelMachine(ground, work, space.default, limits))


def _work(options: Options, found: Sample) -> Work:
    batch = options.batch or (8 if options.objective.kind == "throughput" else 1)
    if options.texts:
        return Texts(options.texts, options.text_count, options.batch or 32)
    if found["kind"] == "decoder":
        return Generation(options.length, options.new_tokens, batch)
    return Shapes(batch, options.length)


def _usable(options: Options, found: Sample) -> tuple[str, ...]:
    """Backends that the user names must be able to run."""
    problems = found["backends"]
    named = next((name for name in options.backends if problems[name]), None)
    if named is not None:
        raise HfaccelError(f"the backend {named} must be able to run here, but: {problems[named]}")
    return options.backends or tuple(name for name in BACKENDS if not problems[name])


def _dry(task: Task) -> str:
    rows = [[axis.name, ", ".join(map(str, axis.values))] for axis in task.space.axes]
    title = f"{len(task.space.settings)} settings for {task.options.subject}, {task.work.label()}"
    default = f"the default: {task.space.default.label()}"
    return render(title, ["axis", "values"], rows) + default


# Measuring


def _tune(task: Task, arguments: list[str]) -> int:
    options = task.options
    found: list[Trial] = []
    standings: list[Standing] = []
    code, before = 0, conditions.look(())
    with open_study(options.storage, task.identity(), options.seed) as study, _progress() as bar:
        search = Search(study, task.space, options.objective, task.machine, options.samples, found=found)
        try:
            _search(task, search, bar)
            _contest(task, search.found, standings, bar)
        except KeyboardInterrupt:
            code = INTERRUPTED
        found = search.found
    if code:
        print("hfaccel: stopped; the same command goes on from here", file=sys.stderr)
    notes = conditions.between(before, conditions.look(())).notes
    _report(task.outcome(found, standings, notes), task, arguments, finished=not code)
    return code


def _search(task: Task, search: Search, bar: Progress) -> None:
    line = bar.add_task("trials", total=task.options.trials)

    def tell(trial: Trial) -> None:
        outcome = task.outcome(search.found, [])
        said = outcome.value(trial.score) if trial.score is not None else trial.reason
        state = "" if trial.state == "complete" else f" ({trial.state})"
        bar.console.print(
            f"trial {trial.number + 1} of {task.options.trials}: {trial.setting.label()}: {said}{state}",
            markup=False,
            highlight=False,
        )
        bar.update(line, completed=len(search.found))

    search.progress = tell
    search.run(task.options.trials)


def _contest(task: Task, found: list[Trial], standings: list[Standing], bar: Progress) -> None:
    others = leaders(found, task.space.default)
    line = bar.add_task("leaders against the default", total=len(others))
    for other in others:
        before = conditions.look(())
        standing = duel(task.machine, task.options.objective, task.space.default, other, task.options.rounds)
        during = conditions.between(before, conditions.look(()))  # processes that have ended count as own
        standings.append(standing.claimed_unless(during.disturbed))
        bar.advance(line)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on standard error where that is a terminal, and a line for each trial everywhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar


# Results


def _report(outcome: Outcome, task: Task, arguments: list[str], finished: bool) -> None:
    options = task.options
    document = _document(outcome, task, arguments)
    if options.result is not None:
        results.write(document, options.result)
    if finished:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        _write(options.profile, profile(outcome, task.facts, date, study.versions()))
    print(json.dumps(document) if options.json else text(outcome))
    if finished and not options.json:
        print(f"profile: {options.profile}; use it by hfaccel-run --profile {options.profile} script.py")


def _document(outcome: Outcome, task: Task, arguments: list[str]) -> results.Document:
    axes = {axis.name: list(axis.values) for axis in task.space.axes}
    document = results.new(task.options.subject, task.space.default, axes, ["hfaccel", "tune", *arguments])
    told = {"host": results.host_of(task.facts), "versions": study.versions(), "tuning": tuning(outcome)}
    return document | told


def _write(path: Path, content: str) -> None:
    try:
        replace_text(path, content)
    except OSError as error:
        raise HfaccelError(
            f"a profile must be written to a file, but {str(path)!r} cannot be ({error.strerror}); "
            "name another --output: the same command goes on from its storage"
        ) from None

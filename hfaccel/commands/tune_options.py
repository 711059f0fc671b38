"""The options of `hfaccel tune`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hfaccel.bench.statistics import LEAST_PAIRS
from hfaccel.bench.work import DOCSTRINGS
from hfaccel.errors import UsageError
from hfaccel.tune.objective import Kind, Objective
from hfaccel.tune.space import ACCURACIES, Value

USAGE = """hfaccel tune [options] MODEL
       hfaccel tune [options] -- script.py [arguments]"""
OBJECTIVES = ("latency", "throughput")


@dataclass(frozen=True)
class Options:
    """What the user asks for."""

    model: str  # "" for a script
    script: tuple[str, ...]  # the script and its arguments; () for a model
    optimize: bool  # the models that the script loads
    objective: Objective
    accuracy: str
    backends: tuple[str, ...]  # (): those that are installed
    fixed: dict[str, Value]
    batch: int | None
    length: int
    new_tokens: int
    texts: str
    text_count: int
    trials: int
    samples: int
    rounds: int
    seconds: float
    timeout: float
    seed: int
    profile: Path
    storage: Path
    result: Path | None
    json: bool
    dry_run: bool

    @property
    def subject(self) -> str:
        return " ".join(self.script) or self.model


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see hfaccel tune --help")


def parse(arguments: list[str]) -> Options:
    """Raises UsageError for an option or value that breaks a rule."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    given, script = _parser().parse_args(arguments[:place]), tuple(arguments[place + 1 :])
    if bool(given.model) == bool(script):
        got = "both" if script else "neither"
        raise UsageError(f"a model or `-- script.py` must be given, but got {got}; see hfaccel tune --help")
    if script:
        _check_script(script, given)
    profile = Path(given.output)
    for path in filter(None, (given.output, given.save)):
        _check_folder(path)
    return Options(
        model=given.model or "",
        script=script,
        optimize=given.optimize,
        objective=_objective(given, bool(script)),
        accuracy=given.accuracy,
        backends=tuple(filter(None, given.backends.split(","))),
        fixed=dict(map(_fixed, given.fix)),
        batch=given.batch,
        length=given.length,
        new_tokens=given.new_tokens,
        texts=given.texts,
        text_count=given.text_count,
        trials=given.trials,
        samples=given.samples or (1 if script else 3),
        rounds=given.rounds,
        seconds=given.seconds,
        timeout=given.timeout,
        seed=given.seed,
        profile=profile,
        storage=Path(given.storage) if given.storage else profile.with_suffix(".db"),
        result=Path(given.save) if given.save else None,
        json=given.json,
        dry_run=given.dry_run,
    )


def _objective(given: argparse.Namespace, is_script: bool) -> Objective:
    kind: Kind = given.objective or ("throughput" if given.limit is not None else "latency")
    for name in ("maximize", "optimize"):
        if getattr(given, name) and not is_script:
            raise UsageError(f"--{name} is for a script, but a model was given; leave it out")
    if is_script and kind == "latency":
        return Objective("report", maximize=given.maximize)
    return Objective(kind, given.percentile, given.limit, given.maximize)


def _check_script(script: tuple[str, ...], given: argparse.Namespace) -> None:
    if not Path(script[0]).is_file():
        raise UsageError(f"a script must exist, but there is no file {script[0]!r}; check the path")
    if given.backends or given.accuracy != "exact" or given.texts:
        raise UsageError(
            "a script chooses its own model, but --backends, --accuracy or --texts was given; leave it out"
        )


def _check_folder(path: str) -> None:
    """Before an hour is spent on what cannot be written."""
    if not Path(path).resolve().parent.is_dir():
        raise UsageError(f"a file must be in a folder that exists, but got {path!r}")


def _fixed(text: str) -> tuple[str, Value]:
    """`axis=value`; numbers are numbers, and none is None."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--fix must be AXIS=VALUE such as allocator=mimalloc, but got {text!r}")
    return name, None if value == "none" else int(value) if value.isdecimal() else value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hfaccel tune",
        usage=USAGE,
        description="Find the settings that are best for a model or a script on this machine, and write them "
        "as a profile for hfaccel-run --profile. docs/tune.md tells what is varied.",
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON, not tables")
    parser.add_argument("--dry-run", action="store_true", help="print what would be varied, measure nothing")
    _add_goal(parser.add_argument_group("what is sought"))
    _add_work(parser.add_argument_group("work of a model"))
    _add_measuring(parser.add_argument_group("measuring"))
    _add_files(parser.add_argument_group("files"))
    return parser


def _add_goal(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--objective", choices=OBJECTIVES, help="latency, or throughput with --limit")
    group.add_argument(
        "--percentile", type=float, default=50.0, metavar="P", help="of latency, and of the limit (50)"
    )
    group.add_argument("--limit", type=float, metavar="MS", help="throughput while latency is within this")
    group.add_argument("--optimize", action="store_true", help="the models that the script loads")
    group.add_argument("--maximize", action="store_true", help="what the script reports (default: minimize)")
    group.add_argument(
        "--accuracy", default="exact", metavar="CLASS", help=f"what results may lose: {', '.join(ACCURACIES)}"
    )
    group.add_argument("--backends", default="", metavar="NAMES", help="default: those that are installed")
    group.add_argument(
        "--fix", action="append", default=[], metavar="AXIS=VALUE", help="not varied, such as allocator=glibc"
    )


def _add_work(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch", type=_count(), metavar="N", help="sequences of a call (1; throughput: 8)")
    group.add_argument("--length", type=_count(), default=128, metavar="N", help="tokens of each (128)")
    group.add_argument("--new-tokens", type=_count(), default=32, metavar="N", help="to generate (32)")
    group.add_argument(
        "--texts", default="", metavar="FILE", help=f"real texts, one a line, or {DOCSTRINGS}; not shapes"
    )
    group.add_argument("--text-count", type=_count(), default=256, metavar="N", help="how many (256)")


def _add_measuring(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--trials", type=_count(), default=25, metavar="N", help="settings to try (25)")
    group.add_argument("--samples", type=_count(), metavar="N", help="of a trial (3; of a script 1 run)")
    group.add_argument(
        "--rounds", type=_count(LEAST_PAIRS), default=7, metavar="N", help="leaders against the default (7)"
    )
    group.add_argument("--seconds", type=_positive, default=1.0, metavar="S", help="of calls in a sample (1)")
    group.add_argument(
        "--timeout", type=_positive, default=600.0, metavar="S", help="for a start, a sample or a run (600)"
    )
    group.add_argument("--seed", type=_count(0), default=0, metavar="N", help="of the search (0)")


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output", default="hfaccel-profile.toml", metavar="FILE", help="the profile (hfaccel-profile.toml)"
    )
    group.add_argument("--storage", metavar="FILE", help="where trials are kept (the profile's name, .db)")
    group.add_argument("--save", metavar="FILE", help="all trials as a result file, for hfaccel bench report")


def _count(least: int = 1) -> Callable[[str], int]:
    def count(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) < 1 << 31:
            raise argparse.ArgumentTypeError(f"a number from {least} on is expected, but got {text!r}")
        return int(text)

    return count


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"a number above 0 is expected, but got {text!r}")
    return number

"""The options of `hfaccel bench MODEL_OR_SCRIPT`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from hfaccel.bench.grid import Axes
from hfaccel.bench.repeated import REPEATED
from hfaccel.bench.setting import ALLOCATORS, HUGE_PAGES, OMP_RUNTIMES, PRECISIONS
from hfaccel.bench.statistics import LEAST_PAIRS
from hfaccel.bench.work import DOCSTRINGS
from hfaccel.errors import UsageError

T = TypeVar("T")
NUMBERS = {  # axes of numbers: option, what they are
    "batch_sizes": "sequences in a call",
    "lengths": "tokens of each sequence; of the prompt where the model generates",
    "new_tokens": "tokens to generate",
    "threads": "threads of a side (default: all usable cores)",
    "instances": "processes that compute at the same time, each on cores of its own",
    "token_budgets": "tokens of a batch of texts that are sorted by length; none: input order",
}
NAMES = {
    "backends": "torch is hfaccel's own; eager, onnxruntime, openvino, inductor (default: those installed)",
    "precisions": ", ".join(PRECISIONS),
    "allocators": ", ".join(ALLOCATORS),
    "omp_runtimes": ", ".join(OMP_RUNTIMES),
    "wait_policies": "how OpenMP threads wait: none (unchanged), active, passive",
    "huge_pages": ", ".join(HUGE_PAGES),
}


@dataclass(frozen=True)
class Options:
    """What the user asks for."""

    subject: str
    script: tuple[str, ...]  # the script and its arguments; () for a model
    axes: Axes
    quick: bool
    texts: str
    text_count: int
    task: str
    pairs: int
    seconds: float
    timeout: float
    roofline: bool
    path: Path
    dry_run: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see hfaccel bench --help")


def parse(arguments: list[str]) -> Options:
    """Raises UsageError for an option or value that breaks a rule."""
    own, after = _divided(arguments)
    given = _parser().parse_args(own)
    if given.repeat is not None:
        return parse([*REPEATED[given.repeat], *_without_repeat(arguments)])
    if given.subject is None:
        raise UsageError("a model or a script must be given, but got neither; see hfaccel bench --help")
    script = (given.subject, *after) if _is_script(given.subject) else ()
    if after and not script:
        raise UsageError(f"arguments after -- are those of a script, but {given.subject!r} is a model")
    return Options(
        subject=given.subject,
        script=script,
        axes=Axes(**{name: tuple(getattr(given, name)) for name in (*NUMBERS, *NAMES)}),
        quick=given.quick,
        texts=given.texts or (DOCSTRINGS if given.task else ""),
        text_count=given.text_count or (64 if given.quick else 512),
        task=given.task,
        pairs=given.pairs or (LEAST_PAIRS if given.quick else 7),
        seconds=given.seconds,
        timeout=given.timeout,
        roofline=not given.no_limits,
        path=Path(given.json or f"hfaccel-bench-{_slug(given.subject)}.json"),
        dry_run=given.dry_run,
    )


def _divided(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What is before and what is behind `--`."""
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _without_repeat(arguments: list[str]) -> list[str]:
    """The other options, which win over those of the repeated study."""
    left = [argument for argument in arguments if not argument.startswith("--repeat=")]
    if "--repeat" in left:
        place = left.index("--repeat")
        del left[place : place + 2]
    return left


def _is_script(subject: str) -> bool:
    path = Path(subject)
    if path.suffix == ".py" and not path.is_file():
        raise UsageError(f"a script must exist, but there is no file {subject!r}; check the path")
    if subject.startswith(("./", "../", "/")) and not path.exists():
        raise UsageError(f"a model must be a folder that exists, but {subject!r} does not; check the path")
    return path.is_file()


def _slug(subject: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(subject).name)[:60] or "result"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hfaccel bench",
        usage="hfaccel bench [options] MODEL\n"
        "       hfaccel bench [options] SCRIPT [-- arguments of the script]\n"
        "       hfaccel bench KIND [options of the kind]",
        description="Repeat the study of hfaccel on this machine: a model or a script, under each setting "
        "against plain transformers under plain python.",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subject", nargs="?", metavar="MODEL_OR_SCRIPT", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a small grid, meant for minutes")
    parser.add_argument("--json", metavar="OUT", help="the result file; one that is there is continued")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the cells and an estimate, measure nothing"
    )
    parser.add_argument("--repeat", choices=REPEATED, help="a study of hfaccel's own benchmarks")
    _add_work(parser.add_argument_group("work"))
    _add_measuring(parser.add_argument_group("measuring"))
    axes = parser.add_argument_group("axes: values separated by commas; all combinations are measured")
    for name, meaning in NUMBERS.items():
        axes.add_argument(_option(name), metavar="N,N", type=_listed(_number(name)), default=(), help=meaning)
    for name, meaning in NAMES.items():
        axes.add_argument(_option(name), metavar="A,B", type=_listed(_name(name)), default=(), help=meaning)
    return parser


def _add_work(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--texts", metavar="FILE", default="", help="a text in each line, or: docstrings")
    group.add_argument("--text-count", metavar="N", type=_count, help="how many of them (default: 512)")
    group.add_argument("--task", default="", help="run the texts through transformers.pipeline(TASK)")


def _add_measuring(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--pairs", metavar="N", type=_count, help="samples of each side; thrice if unclear")
    group.add_argument("--seconds", metavar="S", type=_seconds, default=0.3, help="calls of one sample")
    group.add_argument("--timeout", metavar="S", type=_seconds, default=600.0, help="of a start, of a sample")
    group.add_argument("--no-limits", action="store_true", help="leave out the limits of the machine")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _listed(one: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Values separated by commas, each once."""
    return lambda text: tuple(dict.fromkeys(one(part.strip()) for part in text.split(",")))


def _number(name: str) -> Callable[[str], int | None]:
    if name == "token_budgets":
        return lambda text: None if text == "none" else _count(text)
    return _count


def _name(axis: str) -> Callable[[str], str | None]:
    if axis == "wait_policies":
        return lambda text: None if text == "none" else text
    return lambda text: text


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 1 << 24:
        raise argparse.ArgumentTypeError(f"a number from 1 on is expected, but got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"seconds above 0 are expected, but got {text!r}")
    return value


def print_help(kinds: dict[str, str]) -> None:
    lines = "\n".join(f"  {kind:10} {meaning}" for kind, meaning in kinds.items())
    parser = _parser()
    parser.epilog = (
        f"kinds, each with --json and --help:\n{lines}\n\nA model whose name is a kind is given as ./KIND."
    )
    parser.print_help()

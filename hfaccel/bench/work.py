"""What a study computes: one class for each kind of work. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, TypeAlias

from hfaccel.errors import UsageError, check_count, check_path

DOCSTRINGS = "docstrings"  # the corpus that every Python installation has
# What a process that has read the texts adds to the description of its work.
FOUND = ("tokens", "padded_tokens")


@dataclass(frozen=True)
class Shapes:
    """One forward of an encoder on random tokens, without padding."""

    kind: ClassVar[str] = "shapes"
    unit: ClassVar[str] = "sequences/s"
    batch: int
    length: int

    def __post_init__(self) -> None:
        check_count("batch", self.batch)
        check_count("length", self.length)

    @property
    def items(self) -> int:
        """Of the unit, in one call."""
        return self.batch

    def label(self) -> str:
        return f"({self.batch},{self.length})"


@dataclass(frozen=True)
class Texts:
    """All texts once: the tokenizer, padded batches in input order, the model."""

    kind: ClassVar[str] = "texts"
    unit: ClassVar[str] = "sequences/s"
    name: str  # DOCSTRINGS, or a file with a text in each line
    texts: int
    batch: int = 32

    def __post_init__(self) -> None:
        check_path("a file of texts", self.name)
        check_count("texts", self.texts)
        check_count("batch", self.batch)

    @property
    def items(self) -> int:
        return self.texts

    def label(self) -> str:
        return f"{self.texts} texts of {self.name} by {self.batch}"


@dataclass(frozen=True)
class Pipeline(Texts):
    """All texts once through transformers.pipeline(task)."""

    kind: ClassVar[str] = "pipeline"
    task: str = "feature-extraction"

    def label(self) -> str:
        return f"{self.task} of {super().label()}"


@dataclass(frozen=True)
class Generation:
    """Greedy generation of `new_tokens` after a prompt of random tokens."""

    kind: ClassVar[str] = "generation"
    unit: ClassVar[str] = "tokens/s"
    prompt: int
    new_tokens: int
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("prompt", "new_tokens", "batch"):
            check_count(name, getattr(self, name))

    @property
    def items(self) -> int:
        return self.batch * self.new_tokens

    def label(self) -> str:
        return f"{self.new_tokens} tokens after {self.batch} x {self.prompt}"


@dataclass(frozen=True)
class Script:
    """A whole run of a program, from its start to its end."""

    kind: ClassVar[str] = "script"
    unit: ClassVar[str] = "runs/s"
    command: tuple[str, ...]  # the script and its arguments

    def __post_init__(self) -> None:
        if not self.command:
            raise UsageError("a script must be given, but got no command")

    @property
    def items(self) -> int:
        return 1

    def label(self) -> str:
        return " ".join(self.command)


Work: TypeAlias = Shapes | Texts | Pipeline | Generation | Script
KINDS: dict[str, type[Work]] = {kind.kind: kind for kind in (Shapes, Texts, Pipeline, Generation, Script)}


def describe(work: Work) -> dict[str, object]:
    """As JSON holds the work."""
    values = {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(work).items()
    }
    return {"kind": work.kind, **values}


def work_of(values: Mapping[str, object]) -> Work:
    """The work that `describe` described, with or without what a process has found out about the texts."""
    kind = KINDS.get(str(values.get("kind")))
    if kind is None:
        raise UsageError(f"work must be one of {', '.join(KINDS)}, but got {values.get('kind')!r}")
    given = {name: value for name, value in values.items() if name not in ("kind", *FOUND)}
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(given) - known):
        raise UsageError(
            f"{kind.kind} have the fields {', '.join(sorted(known))}, but got {', '.join(unknown)}; "
            "the file may come from another version of hfaccel"
        )
    if isinstance(command := given.get("command"), list):
        given["command"] = tuple(map(str, command))
    try:
        return kind(**given)  # type: ignore[arg-type]  # __post_init__ checks every value
    except TypeError as error:
        raise UsageError(f"{kind.kind} must be complete, but {error}") from None

"""Progress of a study on standard error: a bar with the time left, or lines where that is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from hfaccel.bench.study import Progress as Told

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def shown(stream: IO[str]) -> Iterator[Told]:
    if not stream.isatty():
        yield Lines(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        yield Bar(bar, bar.add_task("", total=None, left=""))


class Left:
    """The time left, from the groups that are done."""

    def __init__(self) -> None:
        self.start, self.groups, self.done = time.monotonic(), 0, 0

    def begin(self, groups: int) -> None:
        self.start, self.groups, self.done = time.monotonic(), groups, 0

    def advance(self) -> None:
        self.done += 1

    def __str__(self) -> str:
        if not 0 < self.done < self.groups:
            return ""
        each = (time.monotonic() - self.start) / self.done
        return f"{readable(each * (self.groups - self.done))} left"


class Bar:
    """On a terminal."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar, self.task, self.left = bar, task, Left()

    def begin(self, groups: int) -> None:
        self.left.begin(groups)
        self.bar.update(self.task, total=groups)

    def tell(self, text: str) -> None:
        self.bar.update(self.task, description=text)

    def advance(self) -> None:
        self.left.advance()
        self.bar.update(self.task, advance=1, left=str(self.left))


class Lines:
    """In a log: a line for each group that is done."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream, self.left, self.text = stream, Left(), ""

    def begin(self, groups: int) -> None:
        self.left.begin(groups)

    def tell(self, text: str) -> None:
        self.text = text

    def advance(self) -> None:
        self.left.advance()
        parts = (f"group {self.left.done} of {self.left.groups}", self.text.partition(":")[0], str(self.left))
        print(", ".join(filter(None, parts)), file=self.stream, flush=True)


def readable(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

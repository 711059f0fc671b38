"""The study: groups of cells one after another, each kept in the result file as soon as it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from hfaccel.bench import grid, results
from hfaccel.bench.cell import failed
from hfaccel.bench.grid import BASELINE, Cell, Group
from hfaccel.bench.group import measure
from hfaccel.bench.results import Document
from hfaccel.bench.side import Ground
from hfaccel.bench.work import Work
from hfaccel.bench.workers import Limits
from hfaccel.host import HostFacts

PACKAGES = ("hfaccel", "torch", "transformers", "onnxruntime", "openvino", "numpy")
PROCESS_MIB = 700.0  # of a process that has imported torch and transformers
COPIES = 2.5  # of the weights in a process at its peak: as loaded, as packed, and what it computes


class Progress(Protocol):
    """What the study tells while it runs."""

    def begin(self, groups: int) -> None: ...

    def tell(self, text: str) -> None: ...

    def advance(self) -> None: ...


@dataclass(frozen=True)
class Study:
    """What is to be measured, and where the results go."""

    ground: Ground
    cells: Sequence[Cell]
    problems: Mapping[Cell, str]  # why cells cannot be measured here
    size: int  # processes beside a baseline that fit into memory
    pairs: int
    limits: Limits
    document: Document
    path: Path

    def todo(self) -> list[Group]:
        """The groups that are still to be measured."""
        kept = results.done(self.document)
        left: dict[Work, list[Cell]] = {}
        for cell in self.cells:
            if not self.problems.get(cell) and _identity(cell) not in kept:
                left.setdefault(cell.work, []).append(cell)
        return [group for work, cells in left.items() for group in self._groups(work, cells)]

    def _groups(self, work: Work, cells: list[Cell]) -> list[Group]:
        chosen = [cell.setting for cell in cells if cell.setting != BASELINE]
        return list(grid.groups(work, chosen, self.size)) or [Group(work, ())]  # () measures the baseline


def run(study: Study, progress: Progress) -> None:
    """Measure what is left. The file has every group that was finished, whatever ends the study."""
    for cell in study.cells:
        if reason := study.problems.get(cell):
            results.put(study.document, failed(cell.work, cell.setting, "skipped", reason))
    results.write(study.document, study.path)
    groups = study.todo()
    progress.begin(len(groups))
    for group in groups:
        _keep(study, measure(study.ground, group, study.pairs, study.limits, progress.tell))
        results.write(study.document, study.path)
        progress.advance()


def _keep(study: Study, cells: Sequence[Document]) -> None:
    """The baseline is measured with every group; the file keeps the first of these cells."""
    kept = results.done(study.document)
    for cell in cells:
        if results.identity_of(cell) not in kept:
            results.put(study.document, cell)


def _identity(cell: Cell) -> results.Identity:
    return results.identity_of(failed(cell.work, cell.setting, "", ""))


def side_mib(weights_mib: float | None) -> float:
    """What one process of the study may need."""
    return PROCESS_MIB + COPIES * (weights_mib or 0.0)


def free_mib(facts: HostFacts, available: Callable[[], int | None]) -> float | None:
    """Memory that the study may use: what the machine has free, below the container's limit."""
    known = [value for value in (available(), facts.limits.memory_limit) if value is not None]
    return min(known) / 2**20 if known else None


def versions() -> dict[str, str]:
    """Of the packages that decide about speed, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

"""Which cells are compared in a figure, how they look, and what is said of those that are not drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import fields
from typing import TypeVar

from hfaccel.bench.report.model import Look
from hfaccel.bench.report.reading import Cell, Result
from hfaccel.bench.report.theme import DASHES, MARKERS, SERIES
from hfaccel.bench.report.wording import counted, listed, short, text_of, times
from hfaccel.bench.setting import PRECISIONS, STOCK, Setting

Key = TypeVar("Key", bound=Hashable)
FOUND = ("tokens", "padded_tokens")  # what a process found out about texts
AXES = tuple(field.name for field in fields(Setting))
SIDES = ("backend", "precision")
NOT_SIGNIFICANT = "Hollow: the difference from the baseline is not significant."


# Works


def shape(cell: Cell) -> tuple[int, int] | None:
    """Batch size and length of a cell of fixed shapes."""
    batch, length = cell.work.get("batch"), cell.work.get("length")
    if cell.work.get("kind") != "shapes" or not isinstance(batch, int) or not isinstance(length, int):
        return None
    return (batch, length) if batch > 0 and length > 0 else None


def work_label(cell: Cell) -> str:
    """A work in a few words, which differ where works do."""
    if (found := shape(cell)) is not None:
        return f"batch {found[0]}, length {found[1]}"
    work = {name: text_of(value) for name, value in cell.work.items() if name not in FOUND}
    kind = work.pop("kind", "") or "work"
    if kind == "script" and isinstance(command := cell.work.get("command"), list):
        return f"script {' '.join(map(str, command))}"
    if kind == "generation" and {"prompt", "new_tokens"} <= work.keys():
        batch = f", batch {work['batch']}" if work.get("batch", "1") != "1" else ""
        return f"{work['new_tokens']} tokens after {work['prompt']}{batch}"
    if kind in ("texts", "pipeline") and {"name", "texts"} <= work.keys():
        task = f"{work['task']} of " if "task" in work else ""
        batch = f", batches of {work['batch']}" if "batch" in work else ""
        return f"{task}{work['texts']} texts of {work['name']}{batch}"
    return f"{kind} {', '.join(f'{name} {value}' for name, value in work.items())}".strip()


def by_work(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    return grouped(cells, work_label)


def grouped(cells: Iterable[Cell], key: Callable[[Cell], Key]) -> dict[Key, list[Cell]]:
    """Cells by a key, in the order in which keys come."""
    groups: dict[Key, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups


# Settings


def side(cell: Cell) -> tuple[str, str]:
    return cell.setting.backend, cell.setting.precision


def side_label(cell: Cell) -> str:
    return " ".join(side(cell))


def repeated(cells: Sequence[Cell], x: Callable[[Cell], float]) -> list[Cell]:
    """The cells of sides that have more than one value of `x`: one mark alone is no line."""
    groups = grouped(cells, side).values()
    return [cell for group in groups if len(set(map(x, group))) > 1 for cell in group]


def threads(cell: Cell) -> float | None:
    """Threads that computed; where that is not known, those asked for."""
    counted_threads = cell.number("threads")
    return cell.setting.threads if counted_threads is None else counted_threads


def rest(setting: Setting, free: Sequence[str]) -> tuple[object, ...]:
    """A setting without what a figure varies."""
    return tuple(getattr(setting, name) for name in AXES if name not in free)


def usual(cells: Sequence[Cell], free: Sequence[str]) -> list[Cell]:
    """The cells that differ only in what a figure varies, `free` and the work: of each side those whose other
    values are the most frequent, the first of these where several are."""
    free = (*SIDES, *free)
    kept: set[tuple[tuple[str, str], tuple[object, ...]]] = set()
    for name, group in grouped(cells, side).items():
        kept.add((name, Counter(rest(cell.setting, free) for cell in group).most_common(1)[0][0]))
    return [cell for cell in cells if (side(cell), rest(cell.setting, free)) in kept]


def other_values(cells: Sequence[Cell], free: Sequence[str]) -> list[str]:
    """What the drawn sides have in common beside what is varied, where that is not the stock program's."""
    stock = Setting()
    names = [name for name in AXES if name not in (*SIDES, *free)]
    found: dict[str, dict[str, None]] = {}  # the words of a setting, and the backends that have it
    for cell in cells:
        values = {name: getattr(cell.setting, name) for name in names}
        different = {name: value for name, value in values.items() if value != getattr(stock, name)}
        words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in different.items())
        found.setdefault(words, {})[cell.setting.backend] = None
    return [f"{listed(list(backends))}: {words}." for words, backends in found.items() if words]


def of_equal_threads(result: Result, cells: Sequence[Cell]) -> list[Cell]:
    """The cells with the number of threads that the baseline had; where none has it, with the number that
    most of them have, the largest of these where several are."""
    counts = Counter(threads(cell) for cell in cells if threads(cell) is not None)
    if not counts:
        return list(cells)
    usual_of_baseline = {threads(cell) for cell in result.cells if cell.setting == result.baseline}
    fair = [number for number in counts if number in usual_of_baseline] or [*counts]
    chosen = max(fair, key=lambda number: (counts[number], number or 0))
    asked = {cell.setting.threads for cell in cells if threads(cell) == chosen}
    return [cell for cell in cells if threads(cell) == chosen or _unknown(cell, asked)]


def _unknown(cell: Cell, asked: Collection[int | None]) -> bool:
    """Whether a cell that did not tell its threads was asked for the same as those that did."""
    return threads(cell) is None and cell.setting.threads in asked


# What is drawn


def drawable(cells: Iterable[Cell], number: str = "p50_ms") -> list[Cell]:
    """Cells with a right result and a number above zero."""
    return [cell for cell in cells if cell.status == "measured" and (cell.number(number) or 0) > 0]


def hollow(cell: Cell) -> bool:
    """Whether a difference from the baseline is not known to be more than chance."""
    return cell.ratio is not None and not cell.ratio.significant


def tip(cell: Cell) -> str:
    """What is shown where the mouse rests."""
    parts = [f"{cell.setting.label()}; {work_label(cell)}"]
    for name, unit in (("p50_ms", "ms at p50"), ("p90_ms", "at p90")):
        if (value := cell.number(name)) is not None:
            parts.append(f"{short(value)} {unit}")
    if cell.ratio is not None:
        parts.append(f"{times(cell.ratio.median)} the baseline's speed{', not significant' * hollow(cell)}")
    return "; ".join(parts)


def looks(result: Result) -> dict[tuple[str, str], Look]:
    """The look of each side, the same in all figures: a colour for each backend, dashes for each precision,
    and a marker, so that no two sides look alike without colour."""
    sides = list(dict.fromkeys(map(side, result.cells)))
    others = list(dict.fromkeys(backend for backend, _ in sides if backend != STOCK))
    colours = {name: SERIES[1 + place % (len(SERIES) - 1)] for place, name in enumerate(others)}
    taken: set[tuple[str, str]] = set()
    found = {}
    for place, (backend, precision) in enumerate(sides):
        dash = DASHES[PRECISIONS.index(precision)]
        marker = _free_marker(place, dash, taken)
        taken.add((dash, marker))
        found[backend, precision] = Look(colours.get(backend, SERIES[0]), dash, marker)
    return found


def _free_marker(place: int, dash: str, taken: Collection[tuple[str, str]]) -> str:
    """The next marker that no side with these dashes has; where all are taken, the one whose turn it is."""
    turn = [MARKERS[(place + step) % len(MARKERS)] for step in range(len(MARKERS))]
    return next((marker for marker in turn if (dash, marker) not in taken), turn[0])


def notes(drawn: Sequence[Cell], free: Sequence[str], refused: Iterable[Cell] = ()) -> list[str]:
    """What is to be known of a figure: hollow marks, other values, and cells without a right result."""
    said = [NOT_SIGNIFICANT] if any(map(hollow, drawn)) else []
    for name, group in grouped(refused, lambda cell: (cell.status, side_label(cell))).items():
        if name[0] not in ("wrong", "failed"):
            continue
        reason = next((f": {cell.reason}" for cell in group if cell.reason), "")
        said.append(f"Not drawn, {name[0]}: {name[1]}, {counted(len(group), 'cell')}{reason}.")
    return [*said, *other_values(drawn, free)]

"""What a result says in a few sentences, and what a reader must know before believing them."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from hfaccel.bench.report.figures.cells import by_work, drawable, hollow, side_label
from hfaccel.bench.report.figures.tuning import direction
from hfaccel.bench.report.reading import STATES, Cell, Result, Trial, Tuning
from hfaccel.bench.report.wording import counted, short, times

NUMBER, MARK = re.compile(r"\d+(?:\.\d+)?"), "\0"


class Fastest(NamedTuple):
    """The right setting with the largest significant ratio for one work, and the baseline's cell."""

    work: str
    baseline: Cell | None
    cell: Cell | None  # none: nothing is faster beyond chance


def fastest(result: Result) -> list[Fastest]:
    """A row for each work that has a ratio."""
    rows = []
    for label, cells in by_work(result.cells).items():
        right = [cell for cell in drawable(cells) if cell.ratio is not None]
        faster = [cell for cell in right if cell.ratio and cell.ratio.significant and cell.ratio.median > 1]
        best = max(faster, key=lambda cell: cell.ratio.median if cell.ratio else 0.0, default=None)
        base = next((cell for cell in drawable(cells) if cell.setting == result.baseline), None)
        if right:
            rows.append(Fastest(label, base, best))
    return rows


def findings(result: Result) -> list[str]:
    """The largest gain, the search's outcome, and how many cells there are."""
    rows = [row.cell for row in fastest(result) if row.cell is not None]
    lines = []
    if rows:
        lines.append(_gain(max(rows, key=_median), fastest(result)))
    elif any(cell.ratio for cell in result.cells):
        lines.append("No setting is faster than the baseline beyond what chance explains.")
    return [*lines, *_tuned(result), *_counts(result)]


def _median(cell: Cell) -> float:
    return cell.ratio.median if cell.ratio else 0.0


def _gain(cell: Cell, rows: list[Fastest]) -> str:
    work = next(row.work for row in rows if row.cell is cell)
    ratios = [_median(row.cell) for row in rows if row.cell is not None]
    said = f"Largest gain: {cell.setting.label()} is {times(_median(cell))} as fast as the baseline ({work})."
    if len(ratios) > 1:
        said += f" The fastest setting of each work: {times(min(ratios))} to {times(max(ratios))}."
    return said


def _tuned(result: Result) -> list[str]:
    tuning = result.tuning
    if tuning is None or not tuning.trials:
        return []
    best, default = _trial(tuning, tuning.best), _trial(tuning, tuning.default)
    if best is None or best.value is None:
        return [f"{counted(len(tuning.trials), 'trial')}; none is known to be the best."]
    if best is default:
        return [f"The best setting found is the default, with {short(best.value)}{_unit(tuning)}."]
    against = (
        f" against the default's {short(default.value)}" if default and default.value is not None else ""
    )
    return [f"Best setting found: {best.setting.label()}, with {short(best.value)}{against}{_unit(tuning)}."]


def _trial(tuning: Tuning, number: int | None) -> Trial | None:
    return next((trial for trial in tuning.trials if trial.number == number), None)


def _unit(tuning: Tuning) -> str:
    words = [tuning.objective, f"{better} is better" if (better := direction(tuning)) else ""]
    return f" ({', '.join(filter(None, words))})" if any(words) else ""


def _counts(result: Result) -> list[str]:
    if not result.cells:
        return ["No cell was measured."] if result.tuning is None else []
    states = Counter(cell.status for cell in result.cells)
    said = ", ".join(f"{states[state]:,} {state}" for state in STATES if states[state])
    return [f"{counted(len(result.cells), 'cell')}: {said}."]


def warnings(result: Result) -> list[str]:
    """What the study noticed about the machine, the most frequent first, and what must not be used."""
    notes = Counter(note for cell in result.cells for note in dict.fromkeys(cell.notes))
    lines = _merged(notes)
    wrong = Counter(side_label(cell) for cell in result.cells if cell.status == "wrong")
    lines += [f"{name} gives wrong results in {counted(count, 'cell')}" for name, count in wrong.items()]
    faint = sum(map(hollow, result.cells))
    if faint:
        lines.append(
            f"{counted(faint, 'ratio')} without significance: drawn hollow or dashed, grey in tables"
        )
    return lines


def _merged(notes: Counter[str]) -> list[str]:
    """Notes that differ in one number only are one line, with the least and the largest."""
    groups: dict[str, list[str]] = {}
    for note in notes:
        groups.setdefault(NUMBER.sub(MARK, note), []).append(note)
    counts = {pattern: sum(notes[note] for note in group) for pattern, group in groups.items()}
    ordered = sorted(groups, key=lambda pattern: -counts[pattern])
    return [
        f"{line} ({counted(counts[pattern], 'cell')})"
        for pattern in ordered
        for line in _one_line(pattern, groups[pattern])
    ]


def _one_line(pattern: str, notes: list[str]) -> list[str]:
    numbers = sorted((NUMBER.findall(note) for note in notes), key=lambda found: list(map(float, found)))
    if len(notes) == 1 or len(numbers[0]) != 1:
        return notes
    return [pattern.replace(MARK, f"{numbers[0][0]} to {numbers[-1][0]}")]

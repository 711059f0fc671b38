"""What `hfaccel bench` prints: the cells that will be measured, and the figures of those that were."""

from __future__ import annotations

from hfaccel.bench import grid
from hfaccel.bench.results import Document
from hfaccel.bench.setting import Setting
from hfaccel.bench.study import Study
from hfaccel.bench.verdicts import Row
from hfaccel.bench.work import work_of
from hfaccel.commands.bench_progress import readable
from hfaccel.tables import render

COLUMNS = ("setting", "times faster", "from - to", "p50 ms", "p90 ms", "throughput", "peak MiB", "")


def cells(study: Study) -> str:
    """The cells of a study, and about how long the rest of them takes."""
    groups = study.todo()
    rows = [[cell.work.label(), cell.setting.label(), study.problems.get(cell, "")] for cell in study.cells]
    seconds = grid.estimate(groups, grid.SETTLED_START, study.ground.seconds, study.pairs)
    left = sum(len(group.settings) for group in groups)
    return render("cells", ("work", "setting", "left out because"), rows) + (
        f"{left} settings are still to be measured, in {len(groups)} groups beside the baseline: about "
        f"{readable(seconds)}, or more where a call takes longer than {study.ground.seconds:g} s"
    )


def results(document: Document) -> str:
    """A table for each work, then what was noticed."""
    works = {work_of(cell["work"]): None for cell in document["cells"]}
    tables = [_table(document, work.label()) for work in works]
    notes = dict.fromkeys(
        f"{work_of(cell['work']).label()}: {note}"
        for cell in document["cells"]
        for note in cell["conditions"]["notes"]
    )
    return "\n".join([*tables, *notes]) if tables else "no cell was measured"


def _table(document: Document, label: str) -> str:
    found = [cell for cell in document["cells"] if work_of(cell["work"]).label() == label]
    title = label if label.startswith(document["subject"]) else f"{document['subject']} {label}"
    return render(title, COLUMNS, [_row(cell) for cell in found])


def _row(cell: Document) -> list[object]:
    ratio, unit = cell["ratio"], cell["throughput_unit"]
    times = interval = None
    if ratio:
        times = f"{ratio['median']:.2f}" + ("" if ratio["significant"] else " ?")
        interval = f"{ratio['low']:.2f} - {ratio['high']:.2f}"
    return [
        Setting.from_dict(cell["setting"]).label(),
        times,
        interval,
        _number(cell["p50_ms"], ".2f"),
        _number(cell["p90_ms"], ".2f"),
        f"{cell['throughput']:.4g} {unit}" if cell["throughput"] is not None else None,
        _number(cell["peak_memory_mib"], ".0f"),
        f"{cell['status']}: {cell['reason']}" if cell["status"] != "measured" else "",
    ]


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def comparison(rows: list[Row]) -> str:
    columns = ("work", "setting", "first", "second", "change", "from - to", "verdict")
    return render(
        "times faster than the baseline of the same file", columns, [_compared(row) for row in rows]
    )


def _compared(row: Row) -> list[object]:
    interval = None if row.low is None or row.high is None else f"{row.low:.2f} - {row.high:.2f}"
    figures = [_number(value, ".2f") for value in (row.first, row.second, row.change)]
    verdict = row.verdict + (f": {row.reason}" if row.reason else "")
    return [row.work, row.setting, *figures, interval, verdict]

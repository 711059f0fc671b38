"""Tables with every number of a result. `<data value>` holds a number as it is in the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hfaccel.bench.report.figures.cells import by_work, work_label
from hfaccel.bench.report.figures.tuning import mark
from hfaccel.bench.report.html import Content, Markup, element, joined
from hfaccel.bench.report.reading import Cell, Ratio, Result, Trial, Tuning
from hfaccel.bench.report.summary import Fastest
from hfaccel.bench.report.wording import counted, percent, short, text_of, times
from hfaccel.bench.setting import Setting

UNKNOWN = "\N{EN DASH}"
NOTHING = element("span", UNKNOWN, aria_label="not known", role="img")
# Heading, and the number's name in a cell.
TIMES = {"p50": "p50_ms", "p90": "p90_ms", "p99": "p99_ms"}
GENERATION = {"first token": "first_token_ms", "per token": "per_token_ms"}
MACHINE = {
    "page faults per call": "page_faults",
    "peak memory, MiB": "peak_memory_mib",
    "operations per call": "flops",
    "bytes per call": "bytes",
    "largest difference": "largest_difference",
    "allowed": "allowed",
    "throttled, ms": "throttled_ms",
    "load of others": "load_of_others",
}


def number(value: float | None, shown: str | None = None) -> Markup:
    """A number for people, with the exact one as its value."""
    if value is None:
        return NOTHING
    return element("data", short(value) if shown is None else shown, value=repr(value))


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[Content]], kind: str = "") -> Markup:
    """A table whose rows begin with their heading. On a narrow screen the table scrolls, not the page."""
    rows = list(rows)
    kinds = [_kind([row[place] for row in rows]) for place in range(len(heads))]
    head = element("tr", [element("th", t, scope="col", class_=k) for t, k in zip(heads, kinds, strict=True)])
    body = [
        element(
            "tr",
            element("th", row[0], scope="row", class_=kinds[0]),
            [element("td", cell, class_=k) for cell, k in zip(row[1:], kinds[1:], strict=True)],
        )
        for row in rows
    ]
    parts = (element("caption", caption), element("thead", head), element("tbody", body))
    inner = element("table", *parts, class_=kind or None)
    return element("div", inner, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _kind(column: Sequence[Content]) -> str | None:
    """The class of a column: "n" for numbers, "w" for words that need room."""
    if all("<data" in (text := joined(content)) or text == NOTHING for content in column):
        return "n"
    return "w" if any(isinstance(content, str) and len(content) > 24 for content in column) else None


# Times


def times_tables(result: Result) -> dict[str, Markup]:
    """A table for each work, by its title."""
    tables = {}
    for label, cells in by_work(result.cells).items():
        title = label[:1].upper() + label[1:]
        tables[f"{title}: {counted(len(cells), 'setting')}"] = _times_table(title, cells, result.baseline)
    return tables


def _times_table(label: str, cells: Sequence[Cell], baseline: Setting) -> Markup:
    generated = [head for head, name in GENERATION.items() if _any(cells, name)]
    unit = next((cell.throughput_unit for cell in cells if cell.throughput_unit), "per second")
    heads = ["setting", *(f"{name}, ms" for name in (*TIMES, *generated)), "spread", unit]
    heads += ["times faster", "interval", "pairs", "result"]
    names = [*TIMES.values(), *(GENERATION[name] for name in generated)]
    rows = [
        [
            cell.setting.label(),
            *(number(cell.number(name)) for name in names),
            _share(cell.number("spread")),
            number(cell.number("throughput")),
            *_ratio(cell.ratio),
            "baseline" if cell.setting == baseline and cell.status == "measured" else verdict(cell),
        ]
        for cell in cells
    ]
    return table(label, heads, rows, "numbers")


def _any(cells: Sequence[Cell], name: str) -> bool:
    return any(cell.number(name) is not None for cell in cells)


def _share(value: float | None) -> Markup:
    return number(value, None if value is None else percent(value))


def _ratio(ratio: Ratio | None) -> list[Content]:
    if ratio is None:
        return [NOTHING, NOTHING, NOTHING]
    shown = number(ratio.median, times(ratio.median))
    if not ratio.significant:
        shown = element("span", shown, class_="faint")
    ends = [number(ratio.low), " to ", number(ratio.high)]
    return [shown, ends if ratio.low is not None or ratio.high is not None else NOTHING, number(ratio.pairs)]


def verdict(cell: Cell) -> Content:
    """What became of a cell: its state, the reason, and whether it differs from the baseline."""
    if cell.status != "measured":
        reason = f": {cell.reason}" if cell.reason else ""
        return [element("strong", cell.status, class_=f"state {cell.status}"), reason]
    if cell.ratio is None:
        return "measured"
    words = {True: "significant", False: "not significant", None: "significance not known"}
    class_ = "good" if cell.ratio.significant else "faint"
    return element("span", words[cell.ratio.significant], class_=class_)


# Conditions


def conditions_table(result: Result) -> Markup:
    """How each cell was measured: threads, memory, agreement with the baseline, what others did meanwhile."""
    known = {head: name for head, name in MACHINE.items() if _any(result.cells, name)}
    heads = ["setting", "work", "threads", "samples", *known, "steal", "notes"]
    rows = [
        [
            cell.setting.label(),
            work_label(cell),
            number(cell.number("threads")),
            number(len(cell.samples_ms)),
            *(number(cell.number(name)) for name in known.values()),
            _share(cell.number("steal")),
            "; ".join(cell.notes) or UNKNOWN,
        ]
        for cell in result.cells
    ]
    return table("Conditions of each cell", heads, rows, "numbers")


def samples_table(result: Result) -> Markup | None:
    """Every sample, in the order of measuring."""
    rows = [
        [f"{cell.setting.label()}; {work_label(cell)}", [[number(value), " "] for value in cell.samples_ms]]
        for cell in result.cells
        if cell.samples_ms
    ]
    return table("Samples in ms", ["cell", "in the order of measuring"], rows, "samples") if rows else None


# Tuning


def trials_table(tuning: Tuning) -> Markup:
    rows = [
        [
            str(trial.number),
            trial.setting.label(),
            number(trial.value),
            number(trial.seconds),
            _state(tuning, trial),
        ]
        for trial in tuning.trials
    ]
    heads = ["trial", "setting", tuning.objective or "value", "seconds", "state"]
    return table("Trials", heads, rows, "numbers")


def _state(tuning: Tuning, trial: Trial) -> list[Content]:
    marked = mark(tuning, trial)
    state = trial.state + (f": {trial.reason}" if trial.reason else "")
    return [element("strong", marked), ", ", state] if marked else [state]


def importances_table(tuning: Tuning) -> Markup:
    rows = [[name, number(share, percent(share))] for name, share in tuning.importances.items()]
    return table("Importances", ["setting", "share of the variation"], rows, "numbers")


# Facts


def facts_table(caption: str, facts: Iterable[tuple[str, object]]) -> Markup:
    return table(caption, ["fact", "value"], [[name, _fact(value)] for name, value in facts], "facts")


def _fact(value: object) -> Content:
    exact = isinstance(value, int | float) and not isinstance(value, bool)
    return number(value, text_of(value)) if exact and isinstance(value, int | float) else text_of(value)


def limits_table(result: Result) -> Markup | None:
    rows: list[list[Content]] = [
        [f"matrix products in {name}", number(rate), "GFLOP/s"] for name, rate in result.gemm_gflops.items()
    ]
    if result.bandwidth_gb_s is not None:
        rows.append(["memory", number(result.bandwidth_gb_s), "GB/s"])
    if not rows:
        return None
    return table("Limits measured on this machine", ["limit", "value", "unit"], rows, "numbers")


def fastest_table(rows: Sequence[Fastest]) -> Markup:
    """The fastest right setting of each work."""
    heads = ["work", "times faster", "fastest setting", "p50, ms", "baseline, ms", "interval", "pairs"]
    shown = [_fastest_row(row) for row in rows]
    return table("Fastest right setting of each work", heads, shown, "numbers")


def _fastest_row(row: Fastest) -> list[Content]:
    median, interval, pairs = _ratio(row.cell.ratio if row.cell else None)
    return [
        row.work,
        median,
        row.cell.setting.label() if row.cell else "none faster than the baseline",
        number(row.cell.number("p50_ms") if row.cell else None),
        number(row.baseline.number("p50_ms") if row.baseline else None),
        interval,
        pairs,
    ]

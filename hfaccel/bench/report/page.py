"""The page of a result: what was found, pictures, tables, and how to repeat the study."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from importlib.resources import files

from hfaccel.bench.report import summary, tables
from hfaccel.bench.report.drawing import draw
from hfaccel.bench.report.drawing.legend import draw_swatch
from hfaccel.bench.report.drawing.svg import to_svg
from hfaccel.bench.report.figures import make_figures
from hfaccel.bench.report.html import Content, Markup, element, joined
from hfaccel.bench.report.model import Figure, legend
from hfaccel.bench.report.reading import Record, Result, Tuning
from hfaccel.bench.report.theme import DARK, LIGHT, variables
from hfaccel.bench.report.wording import text_of
from hfaccel.bench.statistics import LEAST_EFFECT, LEAST_PAIRS


def make_page(result: Result) -> str:
    """The whole page, self-contained."""
    sections = list(_sections(result))
    links = [element("a", title, href=f"#{_name(title)}") for title, _ in sections]
    contents = element("nav", [[link, " "] for link in links], aria_label="Contents")
    parts = [
        element("section", element("h2", title), content, id=_name(title)) for title, content in sections
    ]
    body = element("body", _header(result), contents, element("main", parts))
    title = f"{result.subject or 'Study'}: speed of transformers on this machine"
    return "<!doctype html>\n" + element("html", _head(title), body, lang="en") + "\n"


def _sections(result: Result) -> Iterator[tuple[str, Content]]:
    """Titles with what follows them."""
    yield "Findings", list(_findings(result))
    if figures := make_figures(result):
        yield "Pictures", list(map(_figure, figures))
    if result.tuning:
        yield "Trials", list(_trials(result.tuning))
    if result.cells:
        yield "Numbers", _numbers(result)
        yield "Conditions", list(_conditions(result))
    yield "Machine and versions", list(_machine(result))
    yield "Repeat this study", list(_repeat(result))


def _name(title: str) -> str:
    return title.lower().replace(" ", "-")


def _head(title: str) -> Markup:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(_style())),
    )


def _style() -> str:
    light, dark = variables(LIGHT), variables(DARK)
    colours = (
        f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )
    sheet = files("hfaccel.bench.report").joinpath("template/style.css")
    return colours + sheet.read_text(encoding="utf-8")


def _header(result: Result) -> Markup:
    facts = [text_of(result.host[name]) for name in ("model", "processor") if result.host.get(name)][:1]
    cores = result.host.get("cores")
    facts += [f"{text_of(cores)} cores"] if cores is not None else []
    facts += [element("time", _day(result.date), datetime=result.date)] if result.date else []
    line: list[Content] = []
    for fact in facts:
        line += [" · ", fact] if line else [fact]
    return element("header", element("h1", result.subject or "A study without a subject"), element("p", line))


def _day(date: str) -> str:
    """ "2026-11-28 01:50 UTC" of an ISO date."""
    return date.replace("T", " ").replace("+00:00", " UTC").replace(":00 UTC", " UTC")


# Findings


def _findings(result: Result) -> Iterator[Content]:
    yield element("ul", [element("li", line) for line in summary.findings(result)])
    warnings = summary.warnings(result)
    if warnings:
        lines = element("ul", [element("li", line) for line in warnings])
        yield element("div", element("strong", "Keep in mind"), lines, class_="warning", role="note")
    rows = summary.fastest(result)
    if rows:
        yield tables.fastest_table(rows)


# Pictures


def _figure(figure: Figure) -> Markup:
    drawings = [to_svg(draw(panel)) for panel in figure.panels]
    alone = " alone" if len(drawings) == 1 else ""
    notes = [element("p", note) for note in figure.notes]
    return element(
        "figure",
        element("h3", figure.title),
        element("p", figure.reading, class_="reading"),
        _legend(figure),
        element("div", drawings, class_=f"panels{alone}"),
        element("figcaption", notes) if notes else "",
        id=f"figure-{figure.name}",
    )


def _legend(figure: Figure) -> Content:
    items = [
        element("li", to_svg(draw_swatch(look), "swatch"), " ", name)
        for name, look in legend(figure.panels).items()
    ]
    return element("ul", items, class_="legend", aria_label="Legend") if items else ""


# Tables and facts


def _trials(tuning: Tuning) -> Iterator[Markup]:
    yield tables.trials_table(tuning)
    if tuning.importances:
        yield tables.importances_table(tuning)


def _numbers(result: Result) -> list[Markup]:
    """Tables that unfold, the first open."""
    made = tables.times_tables(result).items()
    return [_folded(title, table, place == 0) for place, (title, table) in enumerate(made)]


def _folded(title: str, inner: Content, opened: bool = False, class_: str | None = None) -> Markup:
    return element("details", element("summary", title), inner, open="" if opened else None, class_=class_)


def _conditions(result: Result) -> Iterator[Content]:
    title = "Threads, memory, agreement and load of each cell"
    yield _folded(title, tables.conditions_table(result), class_="unprinted")
    yield element("p", "They are not printed: the page itself holds them.", class_="printed")
    samples = tables.samples_table(result)
    if samples is not None:
        yield _folded("All samples", samples, class_="unprinted")


def _machine(result: Result) -> Iterator[Content]:
    plain = {name: value for name, value in result.host.items() if not isinstance(value, Mapping)}
    nested = {name: value for name, value in result.host.items() if name not in plain}
    yield tables.facts_table("Machine", plain.items()) if plain else element("p", "The machine is not known.")
    if nested:
        inner = tables.facts_table("Further facts", _flat(nested))
        yield _folded("All facts of the machine", inner, class_="unprinted")
    yield tables.facts_table("Versions", result.versions.items()) if result.versions else ""
    yield tables.limits_table(result) or ""


def _flat(facts: Record, before: str = "") -> Iterator[tuple[str, object]]:
    """Facts in facts, with the names of both."""
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name} ")
        else:
            yield f"{before}{name}", value


def _repeat(result: Result) -> Iterator[Content]:
    if result.command:
        yield element("pre", element("code", shlex.join(result.command)), tabindex="0")
    else:
        yield element("p", "The command is not known.")
    if result.axes:
        yield tables.facts_table("What was varied", result.axes.items())
    yield element("p", "Baseline: ", element("strong", result.baseline.label()), ". ", METHOD)


METHOD = joined(
    "Each setting runs in a fresh process, the settings of a cell in turn. A ratio is the median of the "
    f"ratios of pairs measured next to each other; it is significant where at least {LEAST_PAIRS} pairs put "
    f"its whole interval more than {LEAST_EFFECT:.0%} away from 1. Results were compared with the "
    "baseline's: a setting whose results are off is shown as wrong, whatever its speed."
)

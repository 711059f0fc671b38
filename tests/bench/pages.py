"""What a page says, for tests: its tables as rows, and whether its elements are well nested."""

from __future__ import annotations

from html.parser import HTMLParser

from hfaccel.bench.report.html import VOID
from hfaccel.bench.report.reading import NUMBERS


class Page(HTMLParser):
    """`tables`: caption -> rows of cells, each its text and the exact numbers in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.tables: dict[str, list[list[tuple[str, list[float]]]]] = {}
        self.texts: list[str] = []
        self.caption = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "caption":
            self.caption = ""
        if tag == "tr":
            self.tables.setdefault(self.caption, []).append([])
        if tag in ("td", "th"):
            self.tables[self.caption][-1].append(("", []))
        if tag == "data":
            self.tables[self.caption][-1][-1][1].append(float(given["value"]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if "caption" in self.open:
            self.caption += data
        elif "td" in self.open or "th" in self.open:
            text, numbers = self.tables[self.caption][-1][-1]
            self.tables[self.caption][-1][-1] = (text + data, numbers)

    def row(self, caption, name):
        """The cells of the row that begins with a name, by the heads of their columns."""
        heads, *rows = self.tables[caption]
        (row,) = (row for row in rows if row[0][0] == name)
        return {head[0]: cell for head, cell in zip(heads, row, strict=True)}


def numbers_of(row):
    """Every number of a cell that the page must hold."""
    found = [row.get(name) for name in NUMBERS if "." not in name]
    for part in ("verified", "conditions", "ratio"):
        found += [
            value for value in (row.get(part) or {}).values() if not isinstance(value, bool | str | list)
        ]
    return {float(value) for value in [*found, *(row.get("samples_ms") or [])] if value is not None}


def shown(page):
    return {value for rows in page.tables.values() for row in rows for _, numbers in row for value in numbers}

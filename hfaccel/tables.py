"""Tables for the terminal, drawn by rich. Imported only when something is printed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any


def render(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """One table as text, as wide as the terminal (or $COLUMNS), without colours."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    output = io.StringIO()
    Console(file=output, width=_width(), color_system=None).print(table)
    return output.getvalue()


def _cell(value: Any) -> str:
    from rich.markup import escape

    if value is None:
        return "-"
    if isinstance(value, tuple | list):
        return escape(", ".join(map(str, value)) or "-")
    return escape(str(getattr(value, "path", value)))


def _width() -> int:
    import shutil

    return max(80, min(shutil.get_terminal_size((110, 24)).columns, 160))

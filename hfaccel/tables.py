"""Tables for the terminal, drawn by rich."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence


def render(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as text, without colours, as wide as the terminal (or $COLUMNS), from 80 to 160 columns."""
    import shutil

    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    output = io.StringIO()
    width = max(80, min(shutil.get_terminal_size((110, 24)).columns, 160))
    Console(file=output, width=width, color_system=None).print(table)
    return output.getvalue()


def _cell(value: object) -> str:
    from rich.markup import escape

    if value is None:
        return "-"
    if isinstance(value, tuple | list):
        return escape(", ".join(map(str, value)) or "-")
    return escape(str(getattr(value, "path", value)))

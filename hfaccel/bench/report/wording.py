"""How numbers and names are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

TIMES = "\N{MULTIPLICATION SIGN}"


def short(value: float) -> str:
    """A number with three digits that count: 1,235 ms is read as well as 1,234.87 ms."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1e7 or abs(value) < 1e-3:
        return f"{value:.3g}"
    whole = float(value).is_integer()
    return f"{value:,.{0 if whole else max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def plain(value: float) -> str:
    """A round number, as beside an axis: without zeros at its end."""
    text = short(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def times(value: float) -> str:
    return f"{short(value)}{TIMES}"


def percent(value: float) -> str:
    """A share. Digits after the point only where they are the only ones."""
    return f"{plain(float(f'{100 * value:.2g}')) if abs(value) < 0.1 else f'{100 * value:.0f}'} %"


def text_of(value: object) -> str:
    """Any value of a result file as text for people."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(text_of, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text_of(part)}" for name, part in value.items()) or "none"
    return str(value)


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def counted(number: int, one: str, several: str = "") -> str:
    """ "1 cell", "2 cells"."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"

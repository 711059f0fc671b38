"""Elements of HTML and SVG as text. Whatever is not an element itself is escaped."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


VOID = frozenset({"meta", "br", "hr", "link", "col"})
Content = str | Iterable["Content"]


def element(name: str, /, *content: Content, **attributes: str | float | None) -> Markup:
    """`<name attributes>content</name>`. Attributes that are None are left out; `_` stands for `-`, and a `_`
    at the end is dropped (`class_`)."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{joined(content)}</{name}>")


def joined(content: Content) -> Markup:
    """Parts one after another, escaped where they are no elements."""
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(html.escape(_printable(content), quote=False))
    return Markup("".join(map(joined, content)))


def _plain(value: str | float) -> str:
    return _printable(value) if isinstance(value, str) else f"{value:.6g}"


def _printable(text: str) -> str:
    """Without what a page cannot hold: control characters and halves of surrogate pairs."""
    return "".join("\ufffd" if _barred(character) else character for character in text)


def _barred(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs")

"""Colours of a page in the light and in the dark, by name. A drawing knows the names only.

Text (`ink`, `muted`) has a contrast of at least 4.5 to 1 to `surface` and to every tile; lines and markers
(`s0` to `s7`) have at least 3 to 1. The colours of series differ in lightness as well as in hue.
"""

from __future__ import annotations

LIGHT = {
    "surface": "#ffffff",
    "raised": "#f4f6f8",
    "ink": "#16191d",
    "muted": "#525a63",
    "grid": "#d9dee3",
    "link": "#0b5cad",
    "bad": "#b3261e",
    "good": "#1d6b3a",
    "faster": "#2f86cf",
    "slower": "#dd7a2b",
    "s0": "#3b434b",
    "s1": "#0b62a8",
    "s2": "#c2500a",
    "s3": "#00795c",
    "s4": "#8d3f87",
    "s5": "#7a6a00",
    "s6": "#1487a5",
    "s7": "#a3204f",
}
DARK = {
    "surface": "#14171b",
    "raised": "#1e2329",
    "ink": "#eceff2",
    "muted": "#a9b3bd",
    "grid": "#353c44",
    "link": "#7db9f5",
    "bad": "#ff9a90",
    "good": "#7fd49b",
    "faster": "#2f7cc0",
    "slower": "#c0641c",
    "s0": "#c9d1d9",
    "s1": "#6cb4f5",
    "s2": "#ff9a5c",
    "s3": "#4fd0a8",
    "s4": "#dd9bd7",
    "s5": "#d9c64d",
    "s6": "#7ad4ea",
    "s7": "#ff8db0",
}
SERIES = tuple(name for name in LIGHT if name[0] == "s" and name[1:].isdigit())
DASHES = ("", "6 3", "2 2.5", "8 3 2 3", "1 3.5")  # one for each precision
MARKERS = (
    *("circle", "square", "triangle", "diamond", "down", "cross", "star", "hexagon"),
    *("left", "right", "flat", "tall"),
)


def variables(colours: dict[str, str]) -> str:
    """The colours as variables of CSS."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2 between two colours such as "#16191d", from 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def mixed(colour: str, ground: str, opacity: float) -> str:
    """What is seen of a colour of this opacity on a ground."""
    pairs = [(int(colour[at : at + 2], 16), int(ground[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(opacity * top + (1 - opacity) * below):02x}" for top, below in pairs)

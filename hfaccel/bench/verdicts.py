"""Two result files against each other: each cell's ratio to the baseline of its own file. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from hfaccel.bench.results import Document, identity_of
from hfaccel.bench.setting import Setting
from hfaccel.bench.statistics import LEAST_EFFECT
from hfaccel.bench.work import work_of

FASTER, SLOWER, EQUAL, OPEN = "faster", "slower", "no difference shown", "no verdict"


@dataclass(frozen=True)
class Row:
    """One cell of both files."""

    work: str
    setting: str
    first: float | None  # times faster than the baseline
    second: float | None
    change: float | None  # second / first
    low: float | None
    high: float | None
    verdict: str
    reason: str = ""  # why there is no verdict

    def to_dict(self) -> dict[str, object]:
        return {
            name: round(value, 4) if isinstance(value, float) else value for name, value in vars(self).items()
        }


def compare(first: Document, second: Document) -> list[Row]:
    """A row for each cell that both files have, but the baselines.

    A verdict needs an interval in both files, and intervals that have no ratio in common: then the second
    differs from the first wherever the true ratios lie within them.
    """
    earlier = {identity_of(cell): cell for cell in first["cells"]}
    found = [(earlier[identity_of(cell)], cell) for cell in second["cells"] if identity_of(cell) in earlier]
    return [
        _row(one, two) for one, two in found if not _is_baseline(one, first) or not _is_baseline(two, second)
    ]


def only_in_one(first: Document, second: Document) -> tuple[int, int]:
    """How many cells the other file lacks."""
    one, two = ({identity_of(cell) for cell in document["cells"]} for document in (first, second))
    return len(one - two), len(two - one)


def differences(first: Document, second: Document) -> list[str]:
    """What differs beside the speed; ratios are each to the baseline of its own file."""
    names = [("subject", first["subject"], second["subject"])]
    for part in ("host", "versions"):
        keys = sorted((set(first[part]) | set(second[part])) - {"facts"})
        names += [(f"{part} {key}", first[part].get(key), second[part].get(key)) for key in keys]
    return [f"{name}: {one} and {two}" for name, one, two in names if one != two]


def _is_baseline(cell: Document, document: Document) -> bool:
    return bool(Setting.from_dict(cell["setting"]) == Setting.from_dict(document["baseline"]))


def _open_reason(cell: Document) -> str:
    """Why nothing can be said of the cell."""
    if cell["status"] != "measured":
        return str(cell["status"])
    if not cell["ratio"]:
        return "no ratio"
    return "disturbed by other programs" if cell["conditions"].get("disturbed") else ""


def _row(one: Document, two: Document) -> Row:
    work, setting = work_of(one["work"]).label(), Setting.from_dict(one["setting"]).label()
    ratios = one["ratio"], two["ratio"]
    medians = [ratio["median"] if ratio else None for ratio in ratios]
    for name, cell in (("first", one), ("second", two)):
        if reason := _open_reason(cell):
            reason = f"{reason} in the {name}"
            return Row(work, setting, medians[0], medians[1], None, None, None, OPEN, reason)
    a, b = ratios
    low, high = b["low"] / a["high"], b["high"] / a["low"]
    verdict = FASTER if low > 1 + LEAST_EFFECT else SLOWER if high < 1 / (1 + LEAST_EFFECT) else EQUAL
    return Row(work, setting, a["median"], b["median"], b["median"] / a["median"], low, high, verdict)

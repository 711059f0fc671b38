"""What hfaccel is to reach at every number of threads, and whether it did. Takes no times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bars import best

Row = dict[str, Any]
RIVALS = ("eager", "openvino")  # hfaccel is compared with these, each in the cell's precision or in float32
EVERYWHERE = 1.0  # a rival's time over hfaccel's, in every cell
USUALLY, SHARE = 1.05, 0.9  # and this much in nine cells of ten
BAR_OF_INSTANCES = 0.8  # throughput of one process over that of an instance on each core


def rivals(engine: str, precision: str) -> tuple[str, ...]:
    """Sides that count as `engine`. Eager may take float32 where that is faster; OpenVINO stays with what was
    asked for, as its float32 is judged in its own cell."""
    return (f"{engine} {precision}", f"{engine} fp32") if engine == "eager" else (f"{engine} {precision}",)


def verdicts(rows: Sequence[Row]) -> list[Row]:
    """Rows for report.check."""
    cells = [row for row in rows if "ms" in row]
    judged = [verdict for row in cells for verdict in _of_cell(row)]
    others = [row for row in rows if "per_second" in row]
    return [*judged, *_share(judged), *others]


def _of_cell(row: Row) -> list[Row]:
    side = f"hfaccel {row['precision']}"
    if side in row["failed"]:
        return [_verdict(f"{row['name']}: {row['failed'][side]}", 0.0)]
    if side in row["not_capped"]:
        return []
    fair = {name: ratio for name, ratio in row["ratio"].items() if name not in row["not_capped"]}
    found = [best(fair, rivals(engine, row["precision"])) for engine in RIVALS]
    return [
        {
            **_verdict(f"{row['name']} against {rival}", ratio),
            "base_ms": row["ms"][rival],
            "fast_ms": row["ms"][side],
        }
        for rival, ratio in filter(None, found)
    ]


def _verdict(name: str, ratio: float) -> Row:
    return {"name": name, "measured": ratio, "bar": EVERYWHERE}


def _share(judged: Sequence[Row]) -> list[Row]:
    if not judged:
        return []
    reached = sum(row["measured"] >= USUALLY for row in judged)
    return [{"name": f"share of these at {USUALLY} or more", "measured": reached / len(judged), "bar": SHARE}]

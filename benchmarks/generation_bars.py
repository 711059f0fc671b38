"""What text generation is to reach, and whether it did. No times are taken here: rows of generation.py go in,
rows for report.check come out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from generation_models import MIXTURES

Row = dict[str, Any]

# How many times less time than eager, in bfloat16 where the CPU multiplies it, otherwise in float32.
SPEED = {
    "decode": {"hfaccel bf16": 2.5, "hfaccel int8-weight-only": 4.5, "hfaccel int4-weight-only": 7.0},
    "prefill": {"hfaccel bf16": 1.3, "hfaccel int8": 1.6},
}
# Bytes of weights read per second of decoding, as a part of what this machine reads in the same run.
SHARE = {"hfaccel bf16": 0.80, "hfaccel int8-weight-only": 0.75, "hfaccel int4-weight-only": 0.65}
# The least time of the best rival of equal bits over hfaccel's.
LEAST = 1.0
RIVALS = {
    "hfaccel bf16": ("llama.cpp bf16", "openvino bf16"),
    "hfaccel int8-weight-only": ("llama.cpp q8_0", "openvino int8"),
    "hfaccel int4-weight-only": ("llama.cpp q4_0", "llama.cpp q4_k_m", "openvino int4"),
}


def judged(rows: Sequence[Row], base: str) -> list[Row]:
    """Rows for report.check. An engine that was not measured counts against no bar."""
    result: list[Row] = []
    for case in dict.fromkeys(row["case"] for row in rows if row["case"] not in MIXTURES):
        measured = {row["engine"]: row for row in rows if row["case"] == case and "seconds" in row}
        result += [*_speeds(case, measured, base), *_shares(case, measured), *_rivalries(case, measured)]
    return result


def ratio(rival: Sequence[float], own: Sequence[float]) -> float:
    """How many times longer the rival takes: the median within the turns."""
    ratios = sorted(one / two for one, two in zip(rival, own, strict=True))
    middle = len(ratios) // 2
    return ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2


def _speeds(case: str, measured: Mapping[str, Row], base: str) -> Iterable[Row]:
    for cell, bars in SPEED.items():
        for engine, bar in bars.items():
            if engine in measured and base in measured:
                yield {
                    "name": f"{case} {cell}: {engine} against {base}",
                    "measured": _ratio(measured, base, engine, cell),
                    "bar": bar,
                }


def _shares(case: str, measured: Mapping[str, Row]) -> Iterable[Row]:
    for engine, bar in SHARE.items():
        if engine in measured:
            share = measured[engine]["share"]
            yield {"name": f"{case} share of bandwidth: {engine}", "measured": share, "bar": bar}


def _rivalries(case: str, measured: Mapping[str, Row]) -> Iterable[Row]:
    for engine, rivals in RIVALS.items():
        there = [rival for rival in rivals if rival in measured and engine in measured]
        for cell in SPEED if there else ():
            least, rival = min((_ratio(measured, rival, engine, cell), rival) for rival in there)
            yield {"name": f"{case} {cell}: {engine} against {rival}", "measured": least, "bar": LEAST}


def _ratio(measured: Mapping[str, Row], rival: str, own: str, cell: str) -> float:
    return ratio(measured[rival]["seconds"][cell], measured[own]["seconds"][cell])

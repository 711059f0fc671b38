"""What hfaccel is to reach against other engines, by the kernels that it uses, and whether it did. No times
are taken here: rows of backends.py go in, rows for report.check come out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]


class Bar(NamedTuple):
    """The least time over hfaccel's that the best of `rivals` takes, in each cell of a case."""

    case: str
    precision: str
    rivals: tuple[str, ...]  # engines with their precision: "openvino fp32"
    least: Mapping[str, float]  # by cell
    better: tuple[float, int] | None = None  # and this much in so many of the cells


def _cells(least: float | Sequence[float], *cells: str) -> dict[str, float]:
    values = [least] * len(cells) if isinstance(least, float) else least
    return dict(zip(cells, values, strict=True))


BERT = ("(1,16)", "(1,128)", "(8,128)", "(1,512)", "(8,16)")
MINILM = ("(1,8)", "(1,128)", "(8,128)")
IN_ORDER, BY_LENGTH = "512 texts in input order", "128 texts by length"
FP32 = ("openvino fp32", "onnxruntime fp32", "ctranslate2 fp32")
INT8 = ("onnxruntime int8", "ctranslate2 int8")
EAGER = ("eager fp32",)
AVX2 = (
    Bar("bert-base", "fp32", FP32, _cells(1.0, *BERT), better=(1.1, 2)),
    Bar("minilm", "fp32", FP32, _cells((1.15, 1.0, 1.0), *MINILM)),
    Bar("bert-base", "int8", INT8, _cells(1.0, *BERT)),
    Bar("minilm", "int8", INT8, _cells(1.0, *MINILM)),
    Bar(IN_ORDER, "fp32", EAGER, _cells(2.7, IN_ORDER)),
)
KEPT = 0.97  # of the figures in docs/performance.md: none may fall by more
PUBLISHED = (
    Bar("bert-base", "fp32", EAGER, _cells((2.8, 1.8, 1.4, 1.4, 1.8), *BERT)),
    Bar("bert-base", "bf16", EAGER, _cells((6.4, 6.6, 6.4, 5.9, 6.6), *BERT)),
    Bar("bert-base", "int8", EAGER, _cells((12.8, 9.7, 9.9, 8.0, 10.0), *BERT)),
    Bar("bert-base", "fp32", ("openvino fp32",), _cells(1.26, *BERT)),
    Bar("bert-base", "bf16", ("openvino bf16",), _cells(1.30, *BERT)),
    Bar("bert-base", "int8", ("openvino int8",), _cells(1.36, *BERT)),
    Bar("minilm", "fp32", EAGER, _cells(4.3, "(1,8)")),
    Bar("minilm", "bf16", EAGER, _cells(6.9, "(1,8)")),
    Bar("minilm", "int8", EAGER, _cells(8.8, "(1,8)")),
    Bar("minilm", "fp32", ("openvino fp32", "onnxruntime fp32"), _cells(1.3, "(1,8)")),
    Bar("minilm", "bf16", ("openvino bf16",), _cells(1.8, "(1,8)")),
    Bar("minilm", "int8", ("openvino int8", "onnxruntime int8"), _cells(1.7, "(1,8)")),
    Bar(IN_ORDER, "fp32", EAGER, _cells(3.6, IN_ORDER)),
    Bar(IN_ORDER, "bf16", EAGER, _cells(11.1, IN_ORDER)),
    Bar(IN_ORDER, "int8", EAGER, _cells(13.1, IN_ORDER)),
    Bar(BY_LENGTH, "fp32", FP32, _cells(1.44, BY_LENGTH)),
    Bar(BY_LENGTH, "bf16", ("openvino bf16",), _cells(1.73, BY_LENGTH)),
    Bar(BY_LENGTH, "int8", ("openvino int8", *INT8), _cells(2.1, BY_LENGTH)),
)
AMX = tuple(
    bar._replace(least={cell: round(KEPT * value, 3) for cell, value in bar.least.items()})
    for bar in PUBLISHED
)
BARS = {"avx2_fp32": AVX2, "avx2_vnni": AVX2, "amx": AMX}  # by kernel set


def best(ratios: Mapping[str, float], rivals: Iterable[str]) -> tuple[str, float] | None:
    """The rival that took least time, and its time over hfaccel's; None where none of them ran."""
    ran = [(ratios[rival], rival) for rival in rivals if rival in ratios]
    return (min(ran)[1], min(ran)[0]) if ran else None


def judged(rows: Sequence[Row], bars: Iterable[Bar]) -> list[Row]:
    """Rows for report.check, of the cells that were measured against a fair rival. Those of rivals that
    stayed above the cap on instructions are not fair."""
    result: list[Row] = []
    for bar in bars:
        ratios = _ratios(rows, bar)
        cells = [_judge(bar, cell, ratios[cell]) for cell in bar.least if cell in ratios]
        reached = [cell for cell in cells if cell is not None]
        result += reached
        if bar.better and len(reached) == len(bar.least):
            result.append(_several(bar, reached, *bar.better))
    return result


def _ratios(rows: Sequence[Row], bar: Bar) -> dict[str, dict[str, float]]:
    """Cell -> rival -> its time over hfaccel's."""
    ratios: dict[str, dict[str, float]] = {}
    for row in rows:
        fair = row.get("base") == f"hfaccel {bar.precision}" and "ratio" in row and not row.get("not_capped")
        if fair and (row["case"], row["precision"]) == (bar.case, bar.precision):
            for cell, ratio in row["ratio"].items():
                ratios.setdefault(cell, {})[row["engine"]] = ratio
    return ratios


def _judge(bar: Bar, cell: str, ratios: Mapping[str, float]) -> Row | None:
    found = best(ratios, bar.rivals)
    if found is None:
        return None
    rival, ratio = found
    place = bar.case if cell == bar.case else f"{bar.case} {cell}"
    return {"name": f"{place} {bar.precision} against {rival}", "measured": ratio, "bar": bar.least[cell]}


def _several(bar: Bar, cells: Sequence[Row], least: float, count: int) -> Row:
    reached = sum(cell["measured"] >= least for cell in cells)
    name = f"{bar.case} {bar.precision}: cells at {least} or more"
    return {"name": name, "measured": reached, "bar": count}

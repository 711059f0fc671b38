"""What was reached of what this machine can compute and can read."""

from __future__ import annotations

from collections.abc import Sequence

from hfaccel.bench.report.figures import cells as of
from hfaccel.bench.report.model import Axis, Figure, Look, Plot, Point, Series, make_figure
from hfaccel.bench.report.reading import Cell, Result
from hfaccel.bench.report.wording import percent, short

READING = (
    "A mark is one work in one setting. The lines are limits measured on this machine: the rate of matrix "
    "products in each precision{slope}. The nearer a mark is to its line, the less is left to win."
)
SLOPE = ", and, where they slope, the bandwidth of memory"
LIMITS = {"fp32": Look("muted", ""), "bf16": Look("muted", "6 3"), "int8": Look("muted", "2 2.5")}
MORE = Look("muted", "8 3 2 3")


def roofline(result: Result) -> Figure | None:
    """One panel over operations per byte where bytes are known, else over operations per call."""
    drawn = _drawn(result)
    if not drawn or not any(rate > 0 for rate in result.gemm_gflops.values()):
        return None
    by_bytes = result.bandwidth_gb_s is not None and all((cell.number("bytes") or 0) > 0 for cell in drawn)
    label = "operations per byte" if by_bytes else "GFLOP per call"
    series = (*_limits(result, drawn, by_bytes), *_marks(result, drawn, by_bytes))
    plot = Plot("Achieved and possible", Axis(label, log=True), Axis("GFLOP/s", log=True), series)
    reading = READING.format(slope=SLOPE if by_bytes else "")
    return make_figure(
        "roofline", "Roofline", reading, [plot], [*_said(result), *of.notes(drawn, ("threads",))]
    )


def _drawn(result: Result) -> list[Cell]:
    """Cells of one instance with all threads: the limits were measured with all cores."""
    single = [cell for cell in result.cells if cell.setting.instances == 1]
    cells = of.usual([cell for cell in of.drawable(single) if (cell.number("flops") or 0) > 0], ("threads",))
    most = max((of.threads(cell) or 0 for cell in cells), default=0)
    return [cell for cell in cells if (of.threads(cell) or 0) == most]


def achieved(cell: Cell) -> float:
    """GFLOP/s at the median time."""
    return (cell.number("flops") or 0.0) / (cell.number("p50_ms") or 1.0) / 1e6


def place(cell: Cell, by_bytes: bool) -> float:
    flops = cell.number("flops") or 0.0
    return flops / (cell.number("bytes") or 1.0) if by_bytes else flops / 1e9


def _marks(result: Result, cells: Sequence[Cell], by_bytes: bool) -> list[Series]:
    looks = of.looks(result)
    return [
        Series(
            of.side_label(group[0]),
            looks[side],
            tuple(_mark(result, cell, by_bytes) for cell in group),
            joined=False,
        )
        for side, group in of.grouped(cells, of.side).items()
    ]


def _mark(result: Result, cell: Cell, by_bytes: bool) -> Point:
    rate = achieved(cell)
    limit = result.gemm_gflops.get(cell.setting.precision)
    share = f", {percent(rate / limit)} of the limit" if limit else ""
    tip = f"{cell.setting.label()}; {of.work_label(cell)}: {short(rate)} GFLOP/s{share}"
    return Point(place(cell, by_bytes), rate, hollow=of.hollow(cell), tip=tip)


def _limits(result: Result, cells: Sequence[Cell], by_bytes: bool) -> list[Series]:
    ends = [place(cell, by_bytes) for cell in cells]
    low, high = min(ends) / 1.3, max(ends) * 1.3
    bandwidth = result.bandwidth_gb_s if by_bytes else None
    return [
        Series(
            f"limit {precision}",
            LIMITS.get(precision, MORE),
            tuple(Point(x, y) for x, y in _roof(low, high, rate, bandwidth)),
        )
        for precision, rate in result.gemm_gflops.items()
        if rate > 0
    ]


def _roof(low: float, high: float, rate: float, bandwidth: float | None) -> list[tuple[float, float]]:
    """The corners of min(rate, bandwidth * x) from low to high."""
    if bandwidth is None or bandwidth <= 0:
        return [(low, rate), (high, rate)]
    ridge = rate / bandwidth
    corners = [low, *([ridge] if low < ridge < high else []), high]
    return [(x, min(rate, bandwidth * x)) for x in corners]


def _said(result: Result) -> list[str]:
    rates = [f"{name} {short(rate)} GFLOP/s" for name, rate in result.gemm_gflops.items()]
    bandwidth = result.bandwidth_gb_s
    memory = "" if bandwidth is None else f"; memory {short(bandwidth)} GB/s"
    return [f"Limits: matrix products {', '.join(rates)}{memory}."]

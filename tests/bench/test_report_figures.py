"""Figures hold the numbers of the result, say what is not significant, and hide no wrong result."""

from __future__ import annotations

import pytest
from study_example import BASELINE, cell, failed, result, setting

from hfaccel.bench.report.figures import FIGURES, make_figures
from hfaccel.bench.report.model import MOST_PANELS, Bars, Heat, Plot, legend
from hfaccel.bench.report.reading import read
from hfaccel.bench.setting import Setting

NAMES = (
    *("tuning-history", "tuning-importances", "speedup", "latency-by-length", "latency-by-cores"),
    *("generation", "programs", "padding", "instances", "allocators", "openmp", "huge-pages", "roofline"),
)
FAST, SLOW = setting("torch", "bf16"), setting("torch", "fp32")


@pytest.fixture(scope="module")
def document():
    return result()


@pytest.fixture(scope="module")
def figures(document):
    return {figure.name: figure for figure in make_figures(read(document))}


def shape(batch=1, length=16):
    return {"kind": "shapes", "batch": batch, "length": length}


def drawn(*cells, **changes):
    """The figures of these cells alone, by name."""
    document = result(cells=list(cells), tuning=None, limits=None, **changes)
    return {figure.name: figure for figure in make_figures(read(document))}


def find(document, work, **parts):
    """Cells of a work whose settings have these parts, usual otherwise."""
    rows = [row for row in document["cells"] if all(row["work"].get(key) == work[key] for key in work)]
    return [row for row in rows if all(row["setting"][name] == value for name, value in parts.items())]


def points(figure, title, series):
    (panel,) = (panel for panel in figure.panels if panel.title == title)
    (line,) = (line for line in panel.series if line.name == series)
    return [(point.x, point.y) for point in line.points]


def test_a_whole_result_gives_every_figure_in_the_order_of_the_page(figures):
    assert tuple(figures) == NAMES and len(FIGURES) == len(NAMES)


def test_nothing_gives_no_figure():
    assert drawn() == {} and drawn(cell(shape(), BASELINE, 10.0)) == {}


@pytest.mark.parametrize(("backend", "precision"), [("torch", "int8"), ("eager", "fp32")])
def test_latency_by_length_has_the_medians_of_the_file(document, figures, backend, precision):
    rows = find(document, {"kind": "shapes", "batch": 8}, **setting(backend, precision))
    expected = sorted((row["work"]["length"], row["p50_ms"]) for row in rows)
    assert points(figures["latency-by-length"], "Batch 8", f"{backend} {precision}") == expected
    assert len(expected) == 3


def test_latency_by_cores_has_the_medians_of_the_file(document, figures):
    rows = find(document, {"batch": 32, "length": 128}, backend="torch", precision="bf16", huge_pages="auto")
    expected = sorted((row["threads"], row["p50_ms"]) for row in rows)
    assert points(figures["latency-by-cores"], "Batch 32, length 128", "torch bf16") == expected
    assert [count for count, _ in expected] == [1, 2, 4, 8]


def test_the_line_above_a_mark_reaches_to_p90(document, figures):
    (row,) = find(document, {"batch": 1, "length": 16}, **FAST)
    panel = figures["latency-by-length"].panels[0]
    line = next(line for line in panel.series if line.name == "torch bf16")
    assert line.points[0].high == row["p90_ms"]


def test_a_side_with_one_number_of_cores_is_not_drawn_by_cores(figures):
    assert not any(name.startswith("openvino") for name in legend(figures["latency-by-cores"].panels))
    assert "openvino fp32" in legend(figures["latency-by-length"].panels)


def test_tiles_are_the_ratios_of_the_file(document, figures):
    heat = next(panel for panel in figures["speedup"].panels if panel.title == "torch int8")
    for tile in heat.tiles:
        place = {"batch": int(heat.rows[tile.row]), "length": int(heat.columns[tile.column])}
        (row,) = find(document, place, **setting("torch", "int8"))
        assert tile.value == row["ratio"]["median"] and not tile.hollow
    assert len(heat.tiles) == 9
    assert "eager fp32" not in [panel.title for panel in figures["speedup"].panels]


def test_wrong_and_failed_cells_are_words_with_their_reason_never_numbers(figures):
    panels = {panel.title: panel for panel in figures["speedup"].panels}
    wrong = [tile for tile in panels["openvino int8"].tiles if tile.text == "wrong"]
    assert len(wrong) == 3 and all(tile.value is None and "0.31" in tile.tip for tile in wrong)
    (broken,) = (tile for tile in panels["openvino bf16"].tiles if tile.value is None)
    assert broken.text == "failed" and "exit code -9" in broken.tip
    lines = figures["latency-by-length"].panels[0].series
    assert {line.name: len(line.points) for line in lines}["openvino int8"] == 2
    said = "\n".join(figures["latency-by-length"].notes)
    assert "Not drawn, wrong: openvino int8, 3 cells: outputs differ by 0.31" in said
    assert "Not drawn, failed: openvino bf16, 1 cell" in said


def test_a_ratio_without_significance_is_hollow_and_said_so():
    one = cell(shape(1), FAST, 9.9, 10.0)
    two = cell(shape(8), FAST, 2.0, 10.0)
    unknown = cell(shape(32), FAST, 2.0, 10.0)
    unknown["ratio"]["significant"] = None
    figure = drawn(one, two, unknown)["speedup"]
    assert [tile.hollow for tile in figure.panels[0].tiles] == [True, False, True]
    assert any("not significant" in note for note in figure.notes)
    assert not any("not significant" in note for note in drawn(two)["speedup"].notes)


def test_sides_are_compared_at_the_threads_of_the_baseline():
    rows = [cell(shape(1), BASELINE, 10.0, threads=2)]
    rows += [cell(shape(8), BASELINE, 80.0, threads=2)]
    fair = cell(shape(1), setting("torch", threads=2), 4.0, 10.0, threads=2)
    rows += [fair]
    rows += [cell(shape(n), setting("torch", threads=1), 6.0, 10.0, threads=1) for n in (1, 8, 32)]
    figure = drawn(*rows)["speedup"]
    assert [tile.value for tile in figure.panels[0].tiles] == [fair["ratio"]["median"]]
    assert "Threads: 2." in figure.notes


def test_the_usual_settings_of_each_side_are_compared_and_named(figures):
    said = figures["latency-by-length"].notes
    assert "torch, onnxruntime and openvino: allocator auto, huge pages auto." in said
    assert "Threads: 8." in said


def test_within_a_panel_of_allocators_nothing_else_differs(document, figures):
    panels = {panel.title: panel for panel in figures["allocators"].panels}
    panel = panels["eager fp32, batch 32, length 128, 8 threads"]
    assert [bar.name for bar in panel.bars] == ["default", "auto", "mimalloc", "jemalloc", "tcmalloc"]
    for bar in panel.bars:
        wanted = setting(allocator=bar.name)
        (row,) = find(document, {"batch": 32, "length": 128}, **wanted)
        assert (bar.value, bar.high) == (row["p50_ms"], row["p90_ms"])
    assert "679,000 faults" in next(bar.text for bar in panel.bars if bar.name == "jemalloc")


def test_openmp_runtimes_and_waiting_are_compared(figures):
    names = [bar.name for bar in figures["openmp"].panels[0].bars]
    assert names == [
        "default OpenMP",
        "default OpenMP, passive waits",
        "intel OpenMP",
        "intel OpenMP, active waits",
    ]


def test_a_failed_allocator_is_a_row_with_its_reason():
    other = setting(allocator="jemalloc"), setting(allocator="mimalloc")
    rows = [cell(shape(), BASELINE, 10.0), cell(shape(), other[0], 9.0, 10.0)]
    bars = drawn(*rows, failed(shape(), other[1], "failed", "exit code -9"))["allocators"].panels[0].bars
    assert [(bar.value, bar.text) for bar in bars][2] == (None, "failed: exit code -9")


def test_a_wrong_result_is_no_bar_however_fast():
    work = {"kind": "generation", "prompt": 8, "new_tokens": 4}
    wrong = cell(work, FAST, 1.0, 10.0, first_token_ms=0.5) | {"status": "wrong", "reason": "tokens differ"}
    right = cell(work, BASELINE, 10.0, first_token_ms=5.0)
    bars = drawn(wrong, right)["generation"].panels[0].bars
    assert [(bar.value, bar.text) for bar in bars] == [(None, "wrong: tokens differ"), (5.0, "5 ms")]


def test_throughput_by_instances(document, figures):
    rows = [row for row in find(document, {"batch": 1, "length": 128}, backend="torch", precision="bf16")]
    best = {}
    for row in rows:
        count = row["setting"]["instances"]
        best[count] = max(best.get(count, 0.0), row["throughput"])
    assert points(figures["instances"], "Batch 1, length 128", "torch bf16") == sorted(best.items())
    assert list(legend(figures["instances"].panels)) == ["eager fp32", "torch bf16"]


def test_padding_is_the_share_of_computed_tokens(document, figures):
    rows = [row for row in document["cells"] if row["work"]["kind"] == "texts"]
    rows = [row for row in rows if row["setting"]["backend"] == "eager"]
    marks = points(figures["padding"], "docstrings", "eager fp32")
    assert [rate for _, rate in marks] == [row["throughput"] for row in rows]
    shares = [1 - row["work"]["tokens"] / row["work"]["padded_tokens"] for row in rows]
    assert [share / 100 for share, _ in marks] == pytest.approx(shares)


def test_the_roofline_has_achieved_rates_and_measured_limits(document, figures):
    (row,) = find(document, {"batch": 8, "length": 128}, **FAST)
    expected = (row["flops"] / 1e9, row["flops"] / (row["p50_ms"] / 1e3) / 1e9)
    plot = figures["roofline"].panels[0]
    assert pytest.approx(expected) in points(figures["roofline"], plot.title, "torch bf16")
    limits = {line.name: {point.y for point in line.points} for line in plot.series if not line.look.marker}
    assert limits == {"limit fp32": {781.5}, "limit bf16": {1722.0}, "limit int8": {3400.0}}


def test_where_bytes_are_known_the_roofline_slopes_with_the_bandwidth():
    cells = [cell(shape(1, n), FAST, n / 10, flops=n * 1e9, bytes=1e9) for n in (1, 100)]
    document = result(cells=cells, tuning=None)
    plot = next(figure for figure in make_figures(read(document)) if figure.name == "roofline").panels[0]
    assert plot.x.label == "operations per byte"
    line = next(line for line in plot.series if line.name == "limit bf16")
    ridge = 1722.0 / 164.2
    assert line.points[0].y == pytest.approx(164.2 / 1.3) and line.points[-1].y == 1722.0
    assert (line.points[1].x, line.points[1].y) == pytest.approx((ridge, 1722.0))


def test_the_history_of_a_search(document, figures):
    plot = figures["tuning-history"].panels[0]
    trials = document["tuning"]["trials"]
    known = {(trial["number"], trial["value"]) for trial in trials if trial["value"] is not None}
    marks = {(point.x, point.y) for line in plot.series if line.look.marker for point in line.points}
    assert marks == known
    line = next(line for line in plot.series if line.name == "best so far")
    heights = [point.y for point in line.points]
    complete = [trial["value"] for trial in trials if trial["state"] == "complete"]
    assert heights == sorted(heights) and (heights[0], heights[-1]) == (complete[0], max(complete))
    assert points(figures["tuning-history"], plot.title, "default") == [(0, 52.0)]
    assert "higher is better" in figures["tuning-history"].reading


def test_a_search_for_the_least_goes_down():
    tuning = result()["tuning"]
    complete = [trial for trial in tuning["trials"] if trial["state"] == "complete"]
    tuning["best"] = min(complete, key=lambda trial: trial["value"])["number"]
    figure = make_figures(read(result(cells=[], tuning=tuning)))[0]
    heights = [point.y for point in figure.panels[0].series[0].points]
    assert heights == sorted(heights, reverse=True) and "lower is better" in figure.reading
    tuning["best"] = None  # no claim where nobody told which is the best
    figure = make_figures(read(result(cells=[], tuning=tuning)))[0]
    assert "best so far" not in legend(figure.panels) and "better" not in figure.reading


def test_importances_are_the_shares_of_the_file(document, figures):
    bars = figures["tuning-importances"].panels[0].bars
    shares = document["tuning"]["importances"]
    assert {bar.name: bar.value for bar in bars} == {name.replace("_", " "): shares[name] for name in shares}


def test_sides_differ_without_colour(figures):
    for figure in figures.values():
        looks = [(look.dash, look.marker) for look in legend(figure.panels).values()]
        assert len(set(looks)) == len(looks), figure.name


def test_many_panels_are_cut_and_said_so():
    rows = []
    for batch in range(1, 16):
        rows += [cell(shape(batch), BASELINE, 10.0)]
        rows += [cell(shape(batch), setting(allocator="mimalloc"), 9.0, 10.0)]
    figure = drawn(*rows)["allocators"]
    assert len(figure.panels) == MOST_PANELS and "3 more panels" in figure.notes[-1]


def test_every_kind_of_panel_is_in_the_example(figures):
    kinds = {type(panel) for figure in figures.values() for panel in figure.panels}
    assert kinds == {Plot, Heat, Bars}
    assert Setting.from_dict(FAST).label() != Setting.from_dict(SLOW).label()

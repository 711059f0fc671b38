"""The page: every number of the result, every text escaped, nothing from outside."""

from __future__ import annotations

import itertools
import shlex

import pytest
from pages import Page, numbers_of, shown
from study_example import BASELINE, cell, result, setting

from hfaccel.bench.report import make_page
from hfaccel.bench.report.drawing.heat import DARKEST
from hfaccel.bench.report.figures.cells import work_label
from hfaccel.bench.report.reading import read
from hfaccel.bench.report.theme import DARK, LIGHT, SERIES, contrast, mixed
from hfaccel.bench.setting import Setting

WORK = {"kind": "shapes", "batch": 1, "length": 16}


@pytest.fixture(scope="module")
def document():
    return result()


@pytest.fixture(scope="module")
def page(document):
    return Page(make_page(read(document)))


# Numbers


def test_a_row_of_the_tables_is_the_cell_of_the_file(document, page):
    for row, found in zip(document["cells"], read(document).cells, strict=True):
        label, title = found.setting.label(), work_label(found)
        cells = page.row(title[:1].upper() + title[1:], label)
        for head, name in (("p50, ms", "p50_ms"), ("p90, ms", "p90_ms"), ("spread", "spread")):
            assert cells[head][1] == ([] if row[name] is None else [row[name]])
        ratio = row["ratio"]
        assert cells["times faster"][1] == ([ratio["median"]] if ratio else [])
        assert cells["interval"][1] == ([ratio["low"], ratio["high"]] if ratio else [])
        if row["status"] != "measured":
            assert cells["result"][0] == f"{row['status']}: {row['reason']}"
        elif ratio:
            assert cells["result"][0] == ("significant" if ratio["significant"] else "not significant")


def test_every_number_of_the_file_is_in_the_page(document, page):
    wanted = set().union(*map(numbers_of, document["cells"]))
    wanted |= {trial["value"] for trial in document["tuning"]["trials"] if trial["value"] is not None}
    wanted |= {trial["seconds"] for trial in document["tuning"]["trials"]}
    wanted |= {
        *document["tuning"]["importances"].values(),
        *document["limits"]["gemm_gflops"].values(),
        164.2,
    }
    assert len(wanted) > 2000 and wanted - shown(page) == set()


def test_shown_numbers_are_rounded_exact_ones(page):
    for rows in page.tables.values():
        for text, numbers in itertools.chain(*rows):
            if len(numbers) == 1 and text.replace(",", "").replace(".", "").isdigit():
                assert float(text.replace(",", "")) == pytest.approx(numbers[0], rel=0.006)


def test_host_versions_command_and_baseline_are_told(document, page):
    text = " ".join(page.texts)
    for word in ("AMD EPYC 9R14", "avx512_bf16", "2.13.0+cpu", "6.18.44", "2026-11-28 01:50 UTC"):
        assert word in text
    (command,) = (text for text in page.texts if text.startswith("hfaccel bench"))
    assert shlex.split(command) == document["command"] and "my results.json" in document["command"]
    assert "other programs used 0.7 CPUs (9 cells)" in page.texts
    assert "279 cells: 275 measured, 3 wrong, 1 failed." in page.texts


def test_the_fastest_right_setting_is_never_a_wrong_one():
    fast = cell(WORK, setting("torch", "int8"), 1.0, 10.0) | {"status": "wrong", "reason": "off"}
    right = cell(WORK, setting("torch", "fp32"), 5.0, 10.0)
    page = Page(make_page(read(result(cells=[cell(WORK, BASELINE, 10.0), fast, right], tuning=None))))
    row = page.row("Fastest right setting of each work", "batch 1, length 16")
    assert row["fastest setting"][0] == Setting.from_dict(right["setting"]).label()
    assert row["times faster"][1] == [right["ratio"]["median"]]


def test_without_a_significant_gain_none_is_claimed():
    page = Page(make_page(read(result(cells=[cell(WORK, setting("torch"), 9.9, 10.0)], tuning=None))))
    assert "No setting is faster than the baseline beyond what chance explains." in page.texts
    row = page.row("Fastest right setting of each work", "batch 1, length 16")
    assert row["fastest setting"][0] == "none faster than the baseline"


def test_notes_that_differ_in_a_number_are_one_line():
    rows = [cell(WORK | {"batch": n}, BASELINE, 10.0) for n in (1, 2, 3)]
    for row, busy in zip(rows, ("0.7", "1.2", "10"), strict=True):
        row["conditions"]["notes"] = [f"other programs used {busy} CPUs", "calls still became faster"]
    page = Page(make_page(read(result(cells=rows, tuning=None))))
    assert "other programs used 0.7 to 10 CPUs (3 cells)" in page.texts
    assert "calls still became faster (3 cells)" in page.texts


# Form


def test_the_page_is_self_contained_and_has_no_script(document):
    text = make_page(read(document)).lower()
    for word in ("<script", "javascript:", "http:", "https:", "url(", "@import", " src=", "<link", "<img"):
        assert word not in text
    assert all(f" on{event}=" not in text for event in ("load", "click", "error"))


def test_pictures_have_a_name_and_table_heads_a_scope(page):
    pictures = [given for tag, given in page.tags if tag == "svg" and given["class"] == "panel"]
    assert len(pictures) > 30 and all(given["role"] == "img" and given["aria-label"] for given in pictures)
    heads = [given for tag, given in page.tags if tag == "th"]
    assert {given.get("scope") for given in heads} == {"row", "col"}
    assert ("html", {"lang": "en"}) in page.tags


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_from_their_ground(colours):
    for ground in ("surface", "raised"):
        for name in ("ink", "muted", "link", "bad", "good"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name in SERIES:
        assert contrast(colours[name], colours["surface"]) >= 3.0, name
    for name in ("faster", "slower"):
        assert contrast(colours["ink"], mixed(colours[name], colours["surface"], DARKEST)) >= 4.5, name


def test_contrast_is_that_of_wcag():
    assert contrast("#ffffff", "#000000") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)

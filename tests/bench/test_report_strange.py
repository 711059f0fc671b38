"""Pages of strange results: missing parts, nulls, names that look like elements, many cells."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages import Page, numbers_of, shown
from study_example import cell, result, setting

from hfaccel.bench.report import make_page
from hfaccel.bench.report.reading import NUMBERS, STATES, read
from hfaccel.bench.setting import ALLOCATORS, HUGE_PAGES, PRECISIONS

WORK = {"kind": "shapes", "batch": 1, "length": 16}

STRANGE = st.sampled_from(
    ["<script>alert(1)</script>", '"><b>', "a&amp;b", "\0\x07", "\ud800", "x" * 300, "µ λ 速"]
)
NAMES = st.one_of(STRANGE, st.text(min_size=1, max_size=20))
NUMBER = st.one_of(st.none(), st.integers(0, 10**12), st.floats(0, 1e12), st.floats(-5, 5))
COUNT = st.integers(1, 10**6)
WORKS = st.one_of(
    st.fixed_dictionaries({"kind": st.just("shapes"), "batch": COUNT, "length": COUNT}),
    st.fixed_dictionaries(
        {"kind": st.just("texts"), "name": NAMES, "texts": COUNT, "batch": COUNT},
        optional={"tokens": NUMBER, "padded_tokens": NUMBER},
    ),
    st.fixed_dictionaries({"kind": st.just("generation"), "prompt": COUNT, "new_tokens": COUNT}),
    st.fixed_dictionaries({"kind": st.just("script"), "command": st.lists(NAMES, min_size=1, max_size=3)}),
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "backend": st.one_of(st.sampled_from(["eager", "torch"]), NAMES),
        "precision": st.sampled_from(PRECISIONS),
        "threads": st.one_of(st.none(), st.integers(1, 8)),
        "instances": st.integers(1, 4),
        "allocator": st.sampled_from(ALLOCATORS),
        "huge_pages": st.sampled_from(HUGE_PAGES),
    },
)
RATIO = st.fixed_dictionaries(
    {"median": st.floats(1e-6, 1e6)},
    optional={"to": NAMES, "low": NUMBER, "high": NUMBER, "pairs": NUMBER, "significant": st.booleans()},
)
PLAIN = {name: NUMBER for name in NUMBERS if "." not in name}
CELLS = st.fixed_dictionaries(
    {"work": WORKS, "setting": SETTINGS, "status": st.sampled_from(STATES)},
    optional={
        **PLAIN,
        "reason": st.one_of(st.none(), NAMES),
        "samples_ms": st.lists(st.floats(0, 1e9), max_size=4),
        "throughput_unit": NAMES,
        "ratio": st.one_of(st.none(), RATIO),
        "verified": st.one_of(st.none(), st.just({"largest_difference": 0.5, "allowed": None})),
        "conditions": st.fixed_dictionaries(
            {}, optional={"steal": NUMBER, "notes": st.lists(NAMES, max_size=2)}
        ),
    },
)
TRIALS = st.fixed_dictionaries(
    {"setting": SETTINGS},
    optional={
        "number": st.integers(0, 30),
        "value": NUMBER,
        "state": st.sampled_from(["complete", "pruned", "failed"]),
        "reason": NAMES,
        "seconds": NUMBER,
    },
)
TUNING = st.fixed_dictionaries(
    {},
    optional={
        "objective": NAMES,
        "trials": st.lists(TRIALS, max_size=5),
        "best": st.one_of(st.none(), st.integers(0, 5)),
        "default": st.one_of(st.none(), st.integers(0, 5)),
        "importances": st.dictionaries(NAMES, NUMBER, max_size=3),
    },
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)
DOCUMENTS = st.fixed_dictionaries(
    {"format": st.just(1), "cells": st.lists(CELLS, max_size=6)},
    optional={
        "command": st.lists(NAMES, max_size=3),
        "date": NAMES,
        "host": st.dictionaries(NAMES, JSON, max_size=4),
        "versions": st.dictionaries(NAMES, JSON, max_size=3),
        "subject": st.one_of(st.none(), NAMES),
        "axes": st.dictionaries(NAMES, JSON, max_size=3),
        "baseline": SETTINGS,
        "limits": st.one_of(st.none(), st.just({"gemm_gflops": {"fp32": 100.0, "int8": None}})),
        "tuning": st.one_of(st.none(), TUNING),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(DOCUMENTS)
def test_any_result_gives_a_sound_page_with_all_its_numbers(document):
    document = json.loads(json.dumps(document))
    text = make_page(read(document))
    page = Page(text)  # which raises if elements are not nested well
    text.encode("utf-8")
    assert not {tag for tag, _ in page.tags} & {"script", "b", "img", "iframe"}
    assert not [name for _, given in page.tags for name in given if name.startswith("on")]
    wanted = set().union(*map(numbers_of, document["cells"])) if document["cells"] else set()
    assert wanted - shown(page) == set()


def test_500_cells():
    rows = [
        cell(WORK | {"batch": n}, setting("torch", threads=1 + n % 7), 10.0 + n, 20.0) for n in range(1, 501)
    ]
    page = Page(make_page(read(result(cells=rows, tuning=None))))
    assert set().union(*map(numbers_of, rows)) - shown(page) == set()

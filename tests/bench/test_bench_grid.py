"""From axes to cells and groups."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfaccel.bench import grid
from hfaccel.bench.grid import BASELINE, Axes, Cell
from hfaccel.bench.setting import Setting
from hfaccel.bench.work import KINDS, Generation, Pipeline, Script, Shapes, Texts, describe, work_of
from hfaccel.errors import UsageError
from hfaccel.host import Library, read_host

counts = st.integers(1, 64)
WORKS = st.one_of(
    st.builds(Shapes, counts, counts),
    st.builds(Texts, st.text(min_size=1), counts, counts),
    st.builds(Pipeline, st.text(min_size=1), counts, counts, st.just("fill-mask")),
    st.builds(Generation, counts, counts, counts),
    st.builds(Script, st.lists(st.text(min_size=1), min_size=1).map(tuple)),
)
FACTS = read_host()._replace(allocators=(Library("mimalloc", "/lib/m.so"),), openmp=())
TWO_CORES = FACTS._replace(
    topology=FACTS.topology._replace(cpus=FACTS.topology.cpus[:2]),
    limits=FACTS.limits._replace(affinity=tuple(cpu.cpu for cpu in FACTS.topology.cpus[:2]), cpu_quota=None),
)


@given(WORKS)
def test_work_survives_json(work):
    assert work_of(json.loads(json.dumps(describe(work)))) == work


@given(WORKS)
def test_what_was_found_out_about_texts_does_not_make_it_another_work(work):
    assert work_of({**describe(work), "tokens": 5, "padded_tokens": 7}) == work


@given(WORKS)
def test_work_has_a_label_and_a_count(work):
    assert work.label() and work.items >= 1 and KINDS[work.kind] is type(work)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "dreams"}, "work must be one of shapes"),
        ({"kind": "shapes", "batch": 0, "length": 1}, "`batch >= 1`"),
        ({"kind": "shapes", "batch": 1}, "must be complete"),
        ({"kind": "shapes", "batch": 1, "length": 1, "width": 2}, "another version of hfaccel"),
        ({"kind": "generation", "prompt": 1, "new_tokens": True}, "`new_tokens >= 1`"),
        ({"kind": "script", "command": []}, "a script must be given"),
        ({"kind": "texts", "name": 5, "texts": 1}, "must be a path"),
    ],
)
def test_work_that_breaks_a_rule_is_refused(values, said):
    with pytest.raises(UsageError, match=said):
        work_of(values)


def test_open_axes_are_filled_and_given_ones_stay():
    full = grid.completed(Axes(precisions=("bf16",)), "encoder", False, 512)
    assert full.precisions == ("bf16",) and full.batch_sizes and full.backends == ("torch",)
    quick = grid.completed(Axes(), "encoder", True, 512)
    assert len(grid.shapes(quick)) < len(grid.shapes(full))


def test_lengths_fit_the_model():
    assert grid.completed(Axes(), "encoder", False, 128).lengths == (128, 16)
    assert grid.completed(Axes(), "encoder", False, 8).lengths == (8,)
    with pytest.raises(UsageError, match="`length <= 128` must hold for this model, but got 512"):
        grid.completed(Axes(lengths=(512,)), "encoder", False, 128)


def test_settings_are_all_combinations_without_the_baseline():
    axes = Axes(
        backends=("eager", "torch"),
        precisions=("fp32", "bf16"),
        instances=(1, 2),
        allocators=("default",),
        omp_runtimes=("default",),
        huge_pages=("off",),
    )
    found = grid.settings(axes)
    assert len(found) == len(set(found)) == 7 and BASELINE not in found
    assert {setting.instances for setting in found[:3]} == {1}


def test_a_work_begins_with_its_baseline():
    works, chosen = [Shapes(1, 8), Shapes(2, 8)], [Setting("torch")]
    assert grid.cells(works, chosen) == [
        Cell(work, setting) for work in works for setting in (BASELINE, Setting("torch"))
    ]


@pytest.mark.parametrize(
    ("work", "setting", "said"),
    [
        (Shapes(1, 8), Setting("torch", allocator="mimalloc", threads=2), ""),
        (Shapes(1, 8), Setting("torch", allocator="glibc"), ""),
        (Shapes(1, 8), Setting("torch", allocator="jemalloc"), "jemalloc is not installed"),
        (Shapes(1, 8), Setting("torch", omp_runtime="intel"), "intel is not installed"),
        (Shapes(1, 8), Setting("eager", "int8"), "plain transformers have no int8"),
        (Shapes(1, 8), Setting("eager", "bf16"), ""),
        (Shapes(1, 8), Setting("other"), "other not installed"),
        (Shapes(1, 8), Setting("torch", threads=3), "it needs 3 cores, and 2 can be used"),
        (Shapes(1, 8), Setting("torch", threads=2, instances=2), "it needs 4 cores"),
        (Script(("a.py",)), Setting("torch", allocator="auto"), ""),
        (Script(("a.py",)), Setting("torch", "bf16"), "a script chooses"),
        (Script(("a.py",)), Setting("onnxruntime"), "a script chooses"),
        (Texts("docstrings", 8), Setting("torch", token_budget=64), ""),
        (Pipeline("docstrings", 8), Setting("torch", token_budget=64), "only texts that are measured"),
        (Shapes(1, 8), Setting("torch", token_budget=64), "only texts that are measured"),
    ],
)
def test_what_cannot_be_measured_has_a_reason(work, setting, said):
    found = grid.problem(Cell(work, setting), TWO_CORES, {"torch": "", "other": "other not installed"})
    assert found.startswith(said) and bool(found) == bool(said)


@given(st.lists(st.integers(1, 8), max_size=12), st.integers(1, 4))
def test_groups_have_every_setting_once_and_fit(instances, size):
    chosen = [Setting("torch", instances=count, threads=place + 1) for place, count in enumerate(instances)]
    found = list(grid.groups(Shapes(1, 8), chosen, size))
    assert [setting for group in found for setting in group.settings] == chosen
    for group in found:
        assert len(group.settings) == 1 or sum(one.instances for one in group.settings) <= size


def test_memory_bounds_the_processes():
    assert grid.group_size(None, 1000) == 3
    assert grid.group_size(100_000, 1000) == 3
    assert grid.group_size(4000, 1000) == 2
    assert grid.group_size(100, 1000) == 1


def test_an_estimate_grows_with_everything():
    one = grid.estimate([grid.Group(Shapes(1, 8), (Setting("torch"),))], 10, 1, 5)
    assert one == 2 * (10 + 6)
    assert grid.estimate([grid.Group(Shapes(1, 8), (Setting("torch", instances=2),))], 10, 1, 5) == 3 * 16


def test_texts_become_pipelines_with_a_task():
    axes = Axes(batch_sizes=(8,))
    assert grid.text_works("docstrings", 5, "", axes) == [Texts("docstrings", 5, 8)]
    assert grid.text_works("docstrings", 5, "fill-mask", axes) == [Pipeline("docstrings", 5, 8, "fill-mask")]
    assert grid.generations(Axes(batch_sizes=(2,), lengths=(8,), new_tokens=(4,))) == [Generation(8, 4, 2)]

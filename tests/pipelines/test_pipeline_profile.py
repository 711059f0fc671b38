"""profile(): figures that add up, of any pipeline; the table, the picture, and advice that fits."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tiny import one_thread  # noqa: F401 - a fixture

import hfaccel
from hfaccel.errors import HfaccelError, ModelError
from hfaccel.pipelines import advice
from hfaccel.pipelines.profile import Phase
from hfaccel.pipelines.timing import outside, seconds

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = tiny.texts(60)


@pytest.fixture(scope="module")
def stock():
    return tiny.text_pipe("text-classification", "BertForSequenceClassification")


@pytest.fixture(scope="module")
def fast(stock):
    return hfaccel.optimize(stock)


@pytest.fixture(scope="module")
def found(fast):
    return hfaccel.profile(fast, TEXTS, batch_size=8)


@pytest.mark.parametrize("optimized", [False, True])
def test_the_figures_are_those_of_the_run(stock, fast, optimized):
    found = hfaccel.profile(fast if optimized else stock, TEXTS, batch_size=8)
    lengths = [len(ids) for ids in stock.tokenizer(TEXTS)["input_ids"]]
    assert found.inputs == 60 and sorted(found.lengths) == sorted(lengths)
    assert found.tokens == sum(lengths) and sum(batch.rows for batch in found.batches) == 60
    assert found.loop == ("hfaccel" if optimized else "transformers")
    for phase in (found.prepare, found.compute, found.finish):
        assert 0 <= phase.waited <= phase.total + 1e-9 and phase.total <= found.seconds
    assert found.compute.total + found.prepare.waited + found.finish.waited <= found.seconds
    assert all(0 <= begin <= end <= found.seconds for spans in found.spans.values() for begin, end in spans)
    assert not hasattr(stock, "_hfaccel_marks")


def test_transformers_pads_and_waits_more(stock, fast, found):
    before = hfaccel.profile(stock, TEXTS, batch_size=8)
    assert found.padding < 0.6 * before.padding
    assert before.prepare.waited == pytest.approx(before.prepare.total)
    runs = (hfaccel.profile(fast, TEXTS * 20, batch_size=8) for _ in range(5))  # a busy machine may hide one
    assert any(many.prepare.waited < many.prepare.total for many in runs)


@pytest.mark.parametrize("name", tiny.CASES)
def test_every_task_can_be_profiled(name):
    case = tiny.CASES[name]()
    found = hfaccel.profile(case.pipe, case.inputs, **case.call)
    assert found.inputs == len(case.inputs) and found.batches and str(found)


def test_streams_and_single_inputs_can_be_profiled(fast):
    assert hfaccel.profile(fast, (text for text in TEXTS), batch_size=4).inputs == 60
    assert hfaccel.profile(fast, TEXTS[0]).inputs == 1


def test_it_prints_a_table_and_is_data(found):
    text = str(found)
    assert "prepare (tokenize)" in text and "padding" in text and "what would help" in text
    assert json.loads(json.dumps(found.to_dict()))["tokens"] == found.tokens


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_it_draws_a_picture(found, tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="pictures need the extra `plots`")
    path = tmp_path / f"profile.{suffix}"
    found.save(path)
    assert path.stat().st_size > 5000
    assert path.read_bytes()[:4] == (b"\x89PNG" if suffix == "png" else b"<?xm")


def test_without_matplotlib_it_says_what_to_install(found, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(HfaccelError, match="pip install matplotlib"):
        found.save(tmp_path / "profile.png")


@pytest.mark.parametrize("thing", [None, "text", lambda text: text])
def test_what_is_no_pipeline_is_refused(thing):
    with pytest.raises(ModelError, match=r"profile\(\) takes a transformers pipeline, but got"):
        hfaccel.profile(thing, TEXTS)


def test_errors_of_the_call_are_unchanged(fast):
    with pytest.raises(ValueError):
        hfaccel.profile(fast, [None])


def test_advice_fits(stock, fast, found):
    assert any("hfaccel.optimize(pipe)" in line for line in hfaccel.profile(stock, TEXTS).advice)
    assert any("batch_size=32" in line for line in hfaccel.profile(fast, TEXTS).advice)
    quiet = dataclasses.replace(
        found,
        seconds=1.0,
        prepare=Phase(0.5, 0.0),
        compute=Phase(0.7, 0.0),
        finish=Phase(0.1, 0.0),
        batches=(),
        lengths=(),
    )
    assert quiet.advice == ()
    change = dataclasses.replace
    assert "return_tensors=True" in advice.tensors(
        change(quiet, task="feature-extraction", finish=Phase(1, 0.3))
    )
    assert "batch_size" in advice.tokenizing(change(quiet, prepare=Phase(0.5, 0.2)))
    assert "fast tokenizer" in advice.tokenizing(change(quiet, prepare=Phase(0.5, 0.2), fast_tokenizer=False))
    assert "bfloat16" in advice.precision(change(quiet, compute=Phase(0.9, 0.0)))
    assert "because" in advice.own_loop(change(quiet, why_stock="because"))
    batches = tuple(change(batch, tokens=batch.tokens // 2) for batch in found.batches)
    assert "padding" in advice.padding(change(quiet, batches=batches))


SPANS = st.lists(st.integers(0, 1000), unique=True).map(
    lambda times: list(zip(sorted(times)[::2], sorted(times)[1::2], strict=False))
)


@given(SPANS, SPANS)
def test_waiting_is_what_nothing_covers(spans, covers):
    covered = {moment for begin, end in covers for moment in range(begin, end)}
    expected = sum(moment not in covered for begin, end in spans for moment in range(begin, end))
    assert outside(spans, covers) == expected
    assert seconds(spans) == outside(spans, [])

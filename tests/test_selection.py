"""backend="auto" with samples: who wins, who is discarded, what is remembered. Times are given, not taken."""

from __future__ import annotations

import json
import tempfile

import pytest
import torch
from conftest import states
from hypothesis import given
from hypothesis import strategies as st

import hfaccel
from hfaccel import backends, cache, optimization, selection
from hfaccel.backends import Backend
from hfaccel.errors import HfaccelError, UsageError
from hfaccel.outcome import Outcome
from hfaccel.selection import NOT_SLOWER, WORTH, Measured, decide


class Pretender(Backend):
    """Leaves the model as it is, and is as fast, as wrong and as long in preparation as it is told to be."""

    def __init__(self, name, speeds, error=0.0, preparation=0.0, fails="", missing=""):
        self.name, self.speeds, self.error, self.preparation = name, speeds, error, preparation
        self.fails, self.missing, self.transformed = fails, missing, 0

    def available(self):
        return self.missing

    def supports(self, model):
        return ""

    def transform(self, model, options):
        self.transformed += 1
        if self.fails == "raises":
            raise RuntimeError("illegal instruction")
        if self.fails:
            return (Outcome("model", False, self.fails),)
        model.__dict__["pretends"] = self.name
        if self.error:
            own = type(model).forward.__get__(model)

            def forward(*args, **kwargs):
                result = own(*args, **kwargs)
                result.last_hidden_state.mul_(1 + self.error)
                return result

            model.__dict__["forward"] = forward
        return (Outcome("model", True, f"run by {self.name}"),)

    def restore(self, model):
        model.__dict__.pop("pretends", None)
        model.__dict__.pop("forward", None)


@pytest.fixture
def contest(monkeypatch, tmp_path, bert, batch):
    """Let these backends compete for a model; returns the optimized model and its report."""
    monkeypatch.setenv("HFACCEL_CACHE", str(tmp_path))
    samples = [batch, {"input_ids": batch["input_ids"][:1]}]

    def run(*candidates, **arguments):
        speeds = {candidate.name: candidate.speeds for candidate in candidates}

        def pretended(call, sample):
            mine = speeds.get(call.__dict__.get("pretends"), (1.0, 1.0))
            return 1.0 / mine[0 if len(sample["input_ids"]) > 1 else 1]

        monkeypatch.setattr(selection, "_time", pretended)
        for module in (selection, backends, optimization):
            monkeypatch.setattr(module, "BACKENDS", list(candidates))
        model = hfaccel.optimize(bert, sample=samples, **{"budget": 3600, **arguments})
        report = hfaccel.report(model)
        told = {outcome.subject: (outcome.applied, outcome.reason) for outcome in report.outcomes}
        hfaccel.restore(model)
        return report.backend, told

    return run


def test_the_fastest_wins(contest):
    winner, told = contest(Pretender("a", (1.5, 1.5)), Pretender("b", (2.0, 2.0)))
    assert winner == "b"
    assert told["backend b"] == (
        True,
        "2.00 times the model's own speed (2.00, 2.00), results differ by 0e+00",
    )
    assert told["backend a"][0] is False and told["backend a"][1].endswith("b is faster")
    assert told["choice of backend"][0] and "measured just now" in told["choice of backend"][1]


def test_where_nothing_wins_nothing_changes(contest, bert, batch):
    before, expected = dict(bert.__dict__), states(bert, batch)
    winner, told = contest(Pretender("a", (1.01, 1.0)), Pretender("b", (5.0, 0.9)))
    assert winner == "" and bert.__dict__ == before and torch.equal(states(bert, batch), expected)
    assert told["backend a"][1].endswith("not worth it")
    assert told["backend b"][1].endswith("slower on some sample")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Pretender("bad", (9.0, 9.0), error=0.01), "discarded: its results differ by 1.0e-02"),
        (Pretender("bad", (9.0, 9.0), error=float("nan")), "discarded: its results differ by inf"),
        (Pretender("bad", (9.0, 9.0), fails="raises"), "discarded: RuntimeError: illegal instruction"),
        (Pretender("bad", (9.0, 9.0), fails="no such operator"), "no such operator"),
        (Pretender("bad", (9.0, 9.0), missing="no AVX"), "no AVX"),
        (Pretender("bad", (9.0, 9.0), preparation=1e6), "pass budget="),
    ],
)  # fmt: skip
def test_who_is_wrong_or_slow_to_prepare_is_out(contest, bad, reason):
    winner, told = contest(bad, Pretender("good", (1.5, 1.5)))
    assert winner == "good" and not told["backend bad"][0] and reason in told["backend bad"][1]


def test_lower_precision_may_differ_more(contest):
    winner, _ = contest(Pretender("a", (2.0, 2.0), error=0.01), dtype=torch.bfloat16)
    assert winner == "a"


def test_the_choice_is_remembered(contest, tmp_path):
    first = Pretender("a", (1.5, 1.5))
    contest(first)
    assert first.transformed == 2  # measured, and then used
    again = Pretender("a", (9.0, 9.0))
    winner, told = contest(again)
    assert winner == "a" and again.transformed == 1 and told["backend a"][1].startswith("1.50 times")
    assert "remove that to measure again" in told["choice of backend"][1]
    (entry,) = (tmp_path / "entries").iterdir()
    (entry / "choice.json").write_text("{damaged")
    assert contest(again)[1]["backend a"][1].startswith("9.00 times")


@pytest.mark.parametrize("change", ["weights", "shapes", "precision", "candidates", "threads"])
def test_what_was_measured_for_something_else_is_not_taken(contest, bert, monkeypatch, change):
    contest(Pretender("a", (1.5, 1.5)))
    arguments = {}
    if change == "weights":
        with torch.no_grad():
            bert.pooler.dense.bias.add_(1)
    elif change == "precision":
        arguments["dtype"] = torch.bfloat16
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif change == "shapes":
        arguments["sample"] = {"input_ids": torch.ones(2, 2, dtype=torch.long)}
    candidates = [Pretender("a", (9.0, 9.0))] + [Pretender("b", (1.0, 1.0))] * (change == "candidates")
    if change == "shapes":
        verdict = selection.select(bert, backends.Options(samples=(arguments["sample"],)))
        assert verdict.outcomes[0].reason.startswith("measured just now")
    else:
        assert contest(*candidates, **arguments)[1]["backend a"][1].startswith("9.00 times")


def test_a_cache_that_cannot_be_written_costs_the_memory_alone(contest, tmp_path, monkeypatch):
    monkeypatch.setenv("HFACCEL_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("")
    winner, told = contest(Pretender("a", (1.5, 1.5)))
    assert winner == "a" and "not kept in" in told["choice of backend"][1]


def test_where_nothing_can_be_written_it_is_measured_once(contest, tmp_path, monkeypatch):
    monkeypatch.setenv("HFACCEL_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    candidate = Pretender("a", (1.5, 1.5))
    winner, told = contest(candidate)
    assert winner == "a" and candidate.transformed == 2  # measured, and then used
    assert "not kept: " in told["choice of backend"][1]


def test_a_full_disk_costs_no_second_measurement(contest, monkeypatch):
    candidate = Pretender("a", (1.5, 1.5))
    monkeypatch.setattr(cache, "full", lambda folder, room=0: candidate.transformed > 0)
    winner, told = contest(candidate)
    assert winner == "a" and candidate.transformed == 2
    assert "No space left" in told["choice of backend"][1]


def test_a_model_too_slow_for_the_budget_is_not_measured_beyond_it(contest):
    candidate = Pretender("a", (9.0, 9.0))
    winner, told = contest(candidate, budget=5)  # the samples take 1 s each: 2 s, three times
    assert winner == "" and candidate.transformed == 0
    assert told["backend a"][1].startswith("not measured: it takes about 6 s")
    assert told["backend a"][1].endswith("pass budget=11")


@pytest.mark.parametrize(
    ("turns", "now", "more"),
    [(0, 99, True), (1, 99, False), (2, 6, True), (3, 6, False), (24, 4, True), (25, 4, False)],
)
def test_how_many_turns_are_taken(turns, now, more):
    assert selection._another(turns, now, share=5, end=7) is more


def test_outputs_with_tuples_are_compared(contest, bert):
    bert.config.output_hidden_states = True
    assert contest(Pretender("a", (1.5, 1.5)))[0] == "a"
    told = contest(Pretender("b", (1.5, 1.5), error=0.01))[1]
    assert "discarded: its results differ by" in told["backend b"][1]


def test_strict_raises_where_nothing_wins(contest):
    with pytest.raises(HfaccelError, match="not worth it"):
        contest(Pretender("a", (1.0, 1.0)), strict=True)


def test_a_sample_that_the_model_does_not_take_is_refused(bert):
    with pytest.raises(UsageError, match="must be an input of the model, but the model raised IndexError"):
        hfaccel.optimize(bert, sample={"input_ids": torch.full((1, 4), 1000)})


@pytest.mark.parametrize("sample", ["text", 7, {"input_ids": [1, 2]}, ["text"], [{"input_ids": None}]])
def test_a_bad_sample_is_refused(bert, sample):
    with pytest.raises(UsageError, match="a sample must be a mapping of names to tensors"):
        hfaccel.optimize(bert, sample=sample)


def test_a_sample_that_the_model_cannot_compute_is_refused(bert, monkeypatch, tmp_path):
    """Before: every backend was discarded, and that was remembered."""
    monkeypatch.setenv("HFACCEL_CACHE", str(tmp_path))
    for sample in ({"nonsense": torch.zeros(1, 3)}, {}):
        with pytest.raises(UsageError, match="must be an input of the model, but the model raised"):
            hfaccel.optimize(bert, sample=sample, budget=0.1)
    assert not [path for path in tmp_path.rglob("*.json")]


speeds = st.lists(st.floats(0.1, 10), min_size=1, max_size=4).map(tuple)


@given(st.lists(st.builds(Measured, st.text("abc", min_size=1, max_size=3), st.one_of(st.just(()), speeds))))
def test_the_winner_is_faster_and_slower_nowhere(measured):
    winner = decide(measured)
    good = [one for one in measured if one.speeds and one.speed >= WORTH and min(one.speeds) >= NOT_SLOWER]
    assert bool(winner) == bool(good)
    if good:
        assert max(good, key=lambda one: one.speed).backend == winner


def test_the_real_backends_compete(bert, batch, tmp_path, monkeypatch):
    """Whoever is installed: the results are the model's, and every backend has its line in the report."""
    monkeypatch.setenv("HFACCEL_CACHE", str(tmp_path))
    expected = states(bert, batch)
    model = hfaccel.optimize(bert, sample=batch, budget=0.5)
    torch.testing.assert_close(states(model, batch), expected, rtol=0, atol=1e-5)
    told = json.dumps(hfaccel.report(model).to_dict()["outcomes"])
    assert all(f"backend {backend.name}" in told for backend in backends.BACKENDS if backend.name != "eager")

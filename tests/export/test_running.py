"""A session in the place of a model's forward: what it runs, what it leaves to the model, and why."""

from __future__ import annotations

import copy
import inspect
import os
import pickle

import pytest
import torch
from conftest import at_once, make_bert, states
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTModel,
)

from hfaccel import export
from hfaccel.outcome import Outcome
from hfaccel.precision import Precision

SMALL = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)


class TwinSession(export.Session):
    """Runs a copy of the model; what it returns is told from the model's own by `runs`."""

    runs = 0

    def __init__(self, flat):
        self.flat = flat

    def run(self, inputs):
        TwinSession.runs += 1
        with torch.inference_mode():
            return self.flat(*inputs.values())


class TwinEngine(export.Engine):
    name = "twin"
    opened = 0

    def open(self, model, job):
        TwinEngine.opened += 1
        job.opened = Outcome("export", True, "a twin was made")
        twin = copy.deepcopy(model)
        return TwinSession(export.Flat(twin, tuple(job.interface.inputs), job.interface.outputs))


def attached(model, given=()):
    outcomes = export.attach(model, TwinEngine(), Precision.FLOAT32, given)
    assert outcomes[0].applied, outcomes[0].reason
    export.running(model).calls.clear()
    return model


@pytest.fixture
def model():
    return attached(make_bert())


def reasons(model):
    return dict(export.running(model).calls)


def check(model, reason="", **arguments):
    """The call returns what the model itself returns, by the session or, with `reason`, without it."""
    own = type(model).forward.__get__(model)
    before = TwinSession.runs
    with torch.inference_mode():
        expected, got = own(**arguments), model(**arguments)
    assert type(got) is type(expected)
    for one, two in zip(got.to_tuple() if hasattr(got, "to_tuple") else got,
                        expected.to_tuple() if hasattr(expected, "to_tuple") else expected,
                        strict=True):  # fmt: skip
        torch.testing.assert_close(one, two)
    assert (TwinSession.runs == before) == bool(reason)
    assert list(reasons(model)) == ([reason] if reason else [])


# What the session runs


def test_the_model_stays_what_it_is(bert):
    before = dict(bert.__dict__)
    attached(bert)
    assert set(bert.__dict__) - set(before) == {"forward"}
    assert inspect.signature(bert.forward) == inspect.signature(type(bert).forward.__get__(bert))
    export.detach(bert)
    assert bert.__dict__ == before
    export.detach(bert)  # twice is once


@pytest.mark.parametrize("shape", [(3, 17), (1, 1), (1, 512), (40, 2)])
def test_any_shape(model, shape):
    check(model, input_ids=torch.randint(0, 1000, shape))


def test_the_ways_to_call_it(model, batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    check(model, **batch)
    check(model, **batch, token_type_ids=torch.ones_like(ids))
    check(model, input_ids=ids.int(), attention_mask=mask.bool())
    check(model, input_ids=ids.t().contiguous().t(), attention_mask=mask)
    check(model, **batch, return_dict=False)
    check(model, **batch, return_dict=True, use_cache=False, output_attentions=False, position_ids=None)
    with torch.inference_mode():
        assert torch.equal(model(ids, mask)[0], model(**batch)[0])


MODELS = {
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=50, dim=64, hidden_dim=64, n_layers=1, n_heads=2)
    ),
    "roberta": lambda: RobertaForSequenceClassification(
        RobertaConfig(vocab_size=50, max_position_embeddings=20, num_labels=3, **SMALL)
    ),
    "vit": lambda: ViTModel(ViTConfig(image_size=32, patch_size=16, **SMALL)),
}


@pytest.mark.parametrize("name", MODELS)
def test_families(name):
    torch.manual_seed(0)
    model = attached(MODELS[name]().eval())
    if name == "vit":
        check(model, pixel_values=torch.randn(3, 3, 32, 32))
        check(model, pixel_values=torch.randn(1, 3, 32, 32))
    else:
        check(model, input_ids=torch.randint(5, 50, (2, 18)))


# What it leaves to the model


def test_arguments_that_were_not_exported(model, batch):
    check(model, "output_hidden_states was passed", **batch, output_hidden_states=True)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("position_ids", torch.arange(17)[None], "position_ids was passed"),
        (
            "attention_mask",
            torch.zeros(3, 1, 17, 17),
            "attention_mask is torch.float32, and torch.int64 was exported",
        ),
        ("attention_mask", torch.ones(3, 1, 17, 17).bool(), "attention_mask has the shape (3, 1, 17, 17)"),
    ],
)
def test_inputs_that_were_not_exported(model, batch, name, value, reason):
    check(model, reason, **{**batch, name: value})


def test_embeddings_instead_of_ids(model):
    check(model, "inputs_embeds was passed", inputs_embeds=torch.randn(2, 5, 256))


@pytest.mark.parametrize(
    ("ids", "reason", "error"),
    [
        (torch.full((1, 4), 1000), "input_ids outside 0 to 999", IndexError),
        (torch.full((1, 4), -1), "input_ids outside 0 to 999", IndexError),
        (torch.ones(1, 513, dtype=torch.long), "more than 512 tokens", Exception),
        (torch.ones(1, 4), "input_ids is torch.float32, and torch.int64 was exported", Exception),
        (torch.ones(4, dtype=torch.long), "input_ids has the shape (4,)", Exception),
        (None, "input_ids is missing", ValueError),
    ],
)
def test_bad_input_gets_the_models_own_error(model, ids, reason, error):
    with torch.inference_mode(), pytest.raises(error):
        model(input_ids=ids)
    assert list(reasons(model)) == [reason]


def test_token_types_outside_the_table(model, batch):
    with torch.inference_mode(), pytest.raises(IndexError):
        model(**batch, token_type_ids=torch.full_like(batch["input_ids"], 2))
    assert list(reasons(model)) == ["token_type_ids outside 0 to 1"]


def test_positions_of_roberta_begin_behind_the_padding():
    model = attached(MODELS["roberta"]().eval())
    check(model, input_ids=torch.randint(5, 50, (1, 18)))
    with torch.inference_mode(), pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.randint(5, 50, (1, 19)))
    assert list(reasons(model)) == ["more than 18 tokens"]


def test_gradients_training_and_autocast(model, batch):
    loss = model(**batch)[0].sum()
    loss.backward()
    assert model.encoder.layer[0].output.dense.weight.grad is not None
    model.train()
    with torch.inference_mode():
        model(**batch)
    model.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(**batch)
    assert list(reasons(model)) == [
        "gradients are enabled; torch.inference_mode is faster",
        "the model is in training mode",
        "autocast is enabled",
    ]


def test_a_dropout_alone_in_training_mode_drops(model, batch):
    before = states(model, batch)
    model.encoder.layer[0].output.dropout.train()
    torch.manual_seed(0)
    assert not torch.allclose(states(model, batch), before, atol=1e-2)
    assert "a submodule is in training mode" in export.running(model).calls
    model.eval()
    calls = export.running(model).calls.total()
    torch.testing.assert_close(states(model, batch), before)
    assert export.running(model).calls.total() == calls


def test_a_configuration_that_asks_for_more(model, batch):
    model.config.output_hidden_states = True
    check(model, "config.output_hidden_states is set", **batch)


def test_hooks_are_seen_while_they_are_there(model, batch):
    seen = []
    handle = model.encoder.layer[0].register_forward_hook(lambda *arguments: seen.append(1))
    check(model, "a submodule has a hook", **batch)
    assert len(seen) == 2
    handle.remove()
    export.running(model).calls.clear()
    check(model, **batch)
    model.register_forward_hook(lambda *arguments: seen.append(1))  # of the model itself: torch calls it
    check(model, **batch)
    assert len(seen) == 3


def test_hooks_for_all_modules_are_seen(model, batch):
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *arguments: None)
    try:
        check(model, "a submodule has a hook", **batch)
    finally:
        handle.remove()


VALUES = "weights were changed after the export; optimize the model again"
PARTS = "a part of the model was replaced or cast after the export; optimize it again"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.embeddings.word_embeddings.weight.add_(1), VALUES),
        (lambda model: model.load_state_dict(make_bert(initializer_range=0.1).state_dict()), VALUES),
        (lambda model: setattr(model.pooler, "dense", torch.nn.Linear(256, 256)), PARTS),
        (lambda model: setattr(model.pooler.dense, "bias", torch.nn.Parameter(torch.ones(256))), PARTS),
        (lambda model: setattr(model, "pooler", copy.deepcopy(model.pooler)), PARTS),
        (lambda model: setattr(model.pooler.dense.bias, "data", torch.ones(256)), VALUES),
        (lambda model: model.double(), PARTS),
        (lambda model: model.pooler.double().float().dense.bias.add_(1), VALUES),
    ],
)
def test_a_changed_model_is_not_run_by_its_old_session(model, batch, change, reason):
    with torch.no_grad():
        change(model)
    check(model, reason, **batch)


def test_equal_values_written_again_are_no_change(model, batch):
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    check(model, **batch)


def test_an_engine_that_raises_is_one_reason_more(model, batch, monkeypatch):
    def run(self, inputs):
        raise RuntimeError("out of memory")

    expected = states(make_bert(), batch)
    monkeypatch.setattr(TwinSession, "run", run)
    assert torch.equal(states(model, batch), expected)
    assert list(reasons(model)) == ["the engine failed (RuntimeError: out of memory)"]


# Copies, processes, threads


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_run_in_a_session_too(model, batch, way):
    other = way(model)
    assert export.running(other).model is other
    check(other, **batch)
    with torch.no_grad():
        other.pooler.dense.weight.zero_()
    check(other, VALUES, **batch)
    check(model, **batch)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_that_is_changed_before_its_first_call(model, batch, way):
    other = way(model)
    with torch.no_grad():
        other.pooler.dense.weight.zero_()
    check(other, VALUES, **batch)


def test_a_copy_shares_the_session_and_a_pickle_opens_its_own(model, batch):
    opened = TwinEngine.opened
    states(copy.deepcopy(model), batch)
    assert TwinEngine.opened == opened
    states(pickle.loads(pickle.dumps(model)), batch)
    assert TwinEngine.opened == opened + 1


def test_after_a_fork_a_session_of_its_own_is_opened(model, batch, monkeypatch):
    opened = TwinEngine.opened
    monkeypatch.setattr(os, "getpid", lambda: 1)
    check(model, **batch)
    assert TwinEngine.opened == opened + 1


def test_what_no_state_dict_holds_is_in_the_fingerprint(bert):
    before = export.fingerprint(bert)
    assert "embeddings.token_type_ids" not in bert.state_dict()
    bert.embeddings.token_type_ids[0, 3] = 1
    assert export.fingerprint(bert) != before


def test_threads(model, batch):
    expected = states(make_bert(), batch)

    def work(_):
        return all(torch.allclose(states(model, batch), expected, atol=1e-5) for _ in range(5))

    assert all(at_once(4, work)) and not reasons(model)


# Models that are not exported


def test_what_generates_is_left_alone():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=64, n_layer=1, n_head=2))
    assert "the model generates" in export.export_problem(model)
    assert "one of the inputs" in export.export_problem(torch.nn.Linear(2, 2))
    assert "must be float32" in export.export_problem(make_bert().half())
    assert not export.export_problem(make_bert())


@pytest.mark.parametrize("wrong", ["raises", "wrong values", "wrong shape", "broken session"])
def test_an_engine_that_fails_leaves_the_model_alone(bert, batch, monkeypatch, wrong):
    run = TwinSession.run

    def open_(self, model, job):
        raise RuntimeError("operator not supported")

    def broken(self, inputs):
        outputs = list(run(self, inputs))
        if wrong == "broken session":
            raise RuntimeError("illegal instruction")
        return [value + 1e-2 if wrong == "wrong values" else value[:, :1] for value in outputs]

    if wrong == "raises":
        monkeypatch.setattr(TwinEngine, "open", open_)
    else:
        monkeypatch.setattr(TwinSession, "run", broken)
    before = dict(bert.__dict__)
    (outcome,) = export.attach(bert, TwinEngine(), Precision.FLOAT32)
    assert not outcome.applied and bert.__dict__ == before
    told = {
        "raises": "operator not supported",
        "wrong values": "where 1e-04 is allowed",
        "wrong shape": "differed by inf",
        "broken session": "the engine failed",
    }
    assert told[wrong] in outcome.reason


@pytest.mark.parametrize(
    "sample", [{"attention_mask": torch.ones(1, 2)}, {"input_ids": torch.ones(1, 2), "x": 1}]
)
def test_a_sample_must_be_inputs_of_the_model(bert, sample):
    (outcome,) = export.attach(bert, TwinEngine(), Precision.FLOAT32, [sample])
    assert "a sample for this model has input_ids" in outcome.reason

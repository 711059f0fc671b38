"""Code and attributes that were replaced after optimize(): they count, as they do in the stock model."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import types
import weakref

import pytest
import torch
from conftest import make_bert, states
from torch import nn
from transformers.activations import GELUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert as bert_code
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertLayer,
    BertModel,
    BertPooler,
    BertSelfAttention,
)

import hfaccel
from hfaccel.engine.calls.code import code_of, trusted
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers.layer import FusedLayer

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")


def turned(function):
    """The function, with the first tensor of what it gives turned round in its last dimension."""

    @functools.wraps(function)
    def mine(*args, **kwargs):
        result = function(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return result.flip(-1)
        if isinstance(result, tuple):
            return (result[0].flip(-1), *result[1:])
        result.last_hidden_state = result.last_hidden_state.flip(-1)
        return result

    return mine


def skips(self, hidden_states, *args, **kwargs):
    """An encoder's forward that runs every other layer."""
    for layer in list(self.layer)[::2]:
        hidden_states = layer(hidden_states, kwargs.get("attention_mask"))
    return bert_code.BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states)


# What is replaced: the owner, the name, by what (None: by the same, turned round)
REPLACED = {
    "an attention's forward": (BertSelfAttention, "forward", None),
    "a layer's forward": (BertLayer, "forward", None),
    "a layer's call": (BertLayer, "__call__", None),
    "every call": (nn.Module, "__call__", None),
    "a layer's other method": (BertLayer, "feed_forward_chunk", None),
    "an activation's forward": (GELUActivation, "forward", None),
    "a loop over layers": (BertEncoder, "forward", skips),
    "a pooler's forward": (BertPooler, "forward", None),
    "the model's forward": (BertModel, "forward", None),
    "the embeddings' forward": (BertEmbeddings, "forward", None),
    "torch's linear layer": (nn.Linear, "forward", None),
    "torch's norm": (nn.LayerNorm, "forward", None),
    "torch's embedding": (nn.Embedding, "forward", None),
    "torch's attention": (torch.nn.functional, "scaled_dot_product_attention", None),
    "torch's linear function": (torch.nn.functional, "linear", None),
    "torch's lookup": (torch.nn.functional, "embedding", None),
    "transformers' helper": (bert_code, "apply_chunking_to_forward", None),
}


def outputs(model, given):
    """Hidden states of real tokens, and the pooler's output."""
    with torch.inference_mode():
        hidden, pooled = model(**given, return_dict=False)
    return torch.cat(
        [hidden[given["attention_mask"].bool()] if len(given) > 1 else hidden.flatten(0, 1), pooled]
    )


def check(change, undo, padded, called, batch):
    """That a change counts, and that the model is fused again when it is undone."""
    given = batch if padded else {"input_ids": batch["input_ids"]}
    stock = make_bert()
    before, fast = outputs(stock, given), hfaccel.optimize(copy.deepcopy(stock))
    for _ in range(called):
        outputs(fast, given)
    change(stock)
    change(fast)
    expected = outputs(stock, given)
    assert not torch.allclose(expected, before, atol=1e-2)
    for _ in range(2):
        torch.testing.assert_close(outputs(fast, given), expected, rtol=0, atol=1e-4)
    undo(stock)
    undo(fast)
    calls = sum(hfaccel.report(fast).stock_calls.values())
    torch.testing.assert_close(outputs(fast, given), before, rtol=0, atol=1e-5)
    assert sum(hfaccel.report(fast).stock_calls.values()) == calls
    return fast


@pytest.mark.parametrize("what", REPLACED)
@pytest.mark.parametrize("padded", [False, True])
def test_code_that_was_replaced_is_run(monkeypatch, batch, what, padded):
    owner, name, mine = REPLACED[what]
    replaced = []

    def change(_):
        if not replaced:
            monkeypatch.setattr(owner, name, mine or turned(getattr(owner, name)))
            replaced.append(name)

    check(change, lambda _: monkeypatch.undo(), padded, 2, batch)


@pytest.mark.parametrize("way", ["item", "register"])
@pytest.mark.parametrize("padded", [False, True])
def test_an_attention_function_that_was_replaced_is_run(batch, way, padded):
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def change(_):
        if ALL_ATTENTION_FUNCTIONS["sdpa"] is not own:
            return
        if way == "register":
            ALL_ATTENTION_FUNCTIONS.register("sdpa", turned(own))
        else:
            ALL_ATTENTION_FUNCTIONS["sdpa"] = turned(own)

    def undo(_):
        ALL_ATTENTION_FUNCTIONS._local_mapping.pop("sdpa", None)
        ALL_ATTENTION_FUNCTIONS.register("sdpa", own)

    try:
        fast = check(change, undo, padded, 2, batch)
    finally:
        undo(None)
    assert "the attention function.sdpa was replaced" in hfaccel.report(fast).stock_calls


class Turned(BertSelfAttention):
    def forward(self, *args, **kwargs):
        return turned(super().forward)(*args, **kwargs)


def shadow(layer):
    layer.feed_forward_chunk = types.MethodType(turned(BertLayer.feed_forward_chunk), layer)


# On one layer: the change, and how it is undone
CHANGED = {
    "a number": (
        lambda layer: setattr(layer.attention.self, "scaling", 0.9),
        lambda layer: setattr(layer.attention.self, "scaling", 64**-0.5),
    ),
    "a flag": (
        lambda layer: setattr(layer.attention.self, "is_causal", True),
        lambda layer: setattr(layer.attention.self, "is_causal", False),
    ),
    "a function": (
        lambda layer: setattr(layer.intermediate.intermediate_act_fn, "act", torch.relu),
        lambda layer: setattr(layer.intermediate.intermediate_act_fn, "act", nn.functional.gelu),
    ),
    "a method": (shadow, lambda layer: delattr(layer, "feed_forward_chunk")),
    "a class": (
        lambda layer: setattr(layer.attention.self, "__class__", Turned),
        lambda layer: setattr(layer.attention.self, "__class__", BertSelfAttention),
    ),
}


@pytest.mark.parametrize("what", CHANGED)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("called", [0, 2])
def test_attributes_that_were_changed_count(batch, what, padded, called):
    change, undo = (lambda model, each=each: each(model.encoder.layer[1]) for each in CHANGED[what])
    if what == "a flag" and padded:
        pytest.skip("with a mask the model does not look at it")
    check(change, undo, padded, called, batch)


def test_another_configuration_counts(batch):
    """With hidden states that every call returns."""
    stock = make_bert()
    fast, given = hfaccel.optimize(copy.deepcopy(stock)), {"input_ids": batch["input_ids"]}
    states(fast, given)
    fast.config = copy.deepcopy(fast.config)
    fast.config.output_hidden_states = True
    with torch.inference_mode():
        assert len(fast(**given).hidden_states) == 3


def test_a_copy_knows_what_was_changed(monkeypatch, batch):
    stock = make_bert()
    fast = hfaccel.optimize(copy.deepcopy(stock))
    copies = copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))
    monkeypatch.setattr(BertSelfAttention, "forward", turned(BertSelfAttention.forward))
    for each in copies:
        torch.testing.assert_close(states(each, batch), states(stock, batch), rtol=0, atol=1e-4)
    monkeypatch.undo()
    for each in copies:
        each.encoder.layer[0].attention.self.scaling = 0.9
        stock.encoder.layer[0].attention.self.scaling = 0.9
        torch.testing.assert_close(states(each, batch), states(stock, batch), rtol=0, atol=1e-4)
        assert "the attribute scaling of attention.self was changed" in hfaccel.report(each).stock_calls


def test_equal_values_written_again_are_no_change(bert, batch):
    fast = hfaccel.optimize(bert)
    states(fast, batch)
    fast.encoder.layer[0].attention.self.scaling = float("0.125")
    fast.encoder.layer[0].chunk_size_feed_forward = int("0")
    states(fast, batch)
    assert not hfaccel.report(fast).stock_calls


def test_code_that_was_replaced_before_is_what_the_trial_ran(monkeypatch, bert, batch):
    """Another forward is not fused; one that calls the original, as a profiler's, is."""
    forward = BertSelfAttention.forward
    monkeypatch.setattr(BertSelfAttention, "forward", turned(forward))
    fast = hfaccel.optimize(copy.deepcopy(bert))
    assert not any(isinstance(module, FusedLayer) for module in fast.modules())
    monkeypatch.setattr(BertSelfAttention, "forward", lambda *args, **kwargs: forward(*args, **kwargs))
    fast = hfaccel.optimize(bert)
    states(fast, batch)
    assert any(isinstance(module, FusedLayer) for module in fast.modules())
    assert not hfaccel.report(fast).stock_calls


@pytest.mark.parametrize("kind", ["linear", "convolution", "norm after it"])
def test_layers_of_other_models_look_too(monkeypatch, kind):
    torch.manual_seed(0)
    stock = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    input, owner = torch.randn(4, 64), nn.Linear
    if kind != "linear":
        stock = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3))
        input, owner = torch.randn(1, 3, 20, 20), nn.Conv2d if kind == "convolution" else nn.BatchNorm2d
    fast = hfaccel.optimize(copy.deepcopy(stock.eval()))
    with torch.inference_mode():
        torch.testing.assert_close(fast(input), stock(input), rtol=0, atol=1e-5)
        monkeypatch.setattr(owner, "forward", turned(owner.forward))
        torch.testing.assert_close(fast(input), stock(input), rtol=0, atol=1e-4)
    if kind != "norm after it":  # which is called as it is
        assert f"{owner.__name__}.forward was replaced" in hfaccel.report(fast).stock_calls


def test_embeddings_whose_code_was_replaced_are_counted(monkeypatch, bert, batch):
    fast = hfaccel.optimize(bert)
    monkeypatch.setattr(nn.Embedding, "forward", turned(nn.Embedding.forward))
    states(fast, batch)
    assert hfaccel.report(fast).stock_calls["Embedding.forward was replaced"] == 1


def test_a_replaced_function_has_a_name(monkeypatch):
    code = trusted([nn.Linear(2, 2)])
    assert code.holds() and code.problem() == "" and code is code_of([nn.Linear])
    monkeypatch.setattr(nn.Linear, "forward", None)
    assert not code.holds() and code.problem() == "Linear.forward was replaced"
    monkeypatch.undo()
    monkeypatch.setattr(torch.nn.functional, "linear", None)
    assert not code.holds() and code.problem() == "torch.nn.functional.linear was replaced"


def test_models_that_a_forward_names_are_not_kept():
    scope = {"nn": nn, "model": nn.Linear(2, 2)}
    exec("class Calls(nn.Module):\n    def forward(self, x): return model(x)", scope)
    gone = weakref.ref(scope["model"])
    trusted([scope["Calls"]()])
    del scope["model"]
    gc.collect()
    assert gone() is None

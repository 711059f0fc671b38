"""All layers in one call: the same results, and one by one where anything is out of the ordinary."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from encoders import TEXTS, inputs, make, real, run
from torch import nn

import hfaccel
from hfaccel.engine import transform
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers.call import Call
from hfaccel.engine.layers.stack import FusedStack, Together

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)

STACKED = ["BERT", "RoBERTa", "DistilBERT", "ELECTRA", "MPNet", "CLIP vision", "wav2vec2"]


def stacks(model):
    return [module for module in model.modules() if isinstance(module, FusedStack)]


@pytest.fixture
def calls(number_of_each_call):
    """How many layers each call of the kernels ran."""
    return number_of_each_call(Call, "compute", lambda self, layers, *_: len(layers))


@pytest.fixture
def bert():
    model = make("BERT")
    transform(model)
    return model


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_the_layers_run_in_one_call(name, side, calls):
    model, given = make(name), inputs(name, side)
    expected = run(model, given)
    transform(model)
    calls.clear()
    got = run(model, given)
    assert calls == [2]
    torch.testing.assert_close(real(got, given), real(expected, given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TEXTS)
def test_hidden_states_are_those_of_every_layer(name):
    model, given = make(name), inputs(name, "none")
    with torch.inference_mode():
        expected = model(**given, output_hidden_states=True).hidden_states
    transform(model)
    for _ in range(2):
        with torch.inference_mode():
            got = model(**given, output_hidden_states=True).hidden_states
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(model, given), expected[-1], rtol=1e-4, atol=1e-5)


def test_hidden_states_that_were_asked_for_once_cost_nothing_later(bert, calls):
    given = inputs("BERT")
    for _ in range(2):
        with torch.inference_mode():
            assert len(bert(**given, output_hidden_states=True).hidden_states) == 3
        assert calls == [1, 1]  # hooks collect them, layer by layer, and stay
        run(bert, given)
        assert calls[2:] == [2]
        calls.clear()


def test_a_hook_on_a_layer_is_called(bert, calls):
    seen = []
    handle = bert.encoder.layer[1].register_forward_hook(lambda *_: seen.append(1))
    run(bert, inputs("BERT"))
    assert seen == [1] and calls == [1, 1]
    handle.remove()
    run(bert, inputs("BERT"))
    assert seen == [1] and calls[2:] == [2]


def test_a_forward_that_was_replaced_is_called(bert):
    given, layer, seen = inputs("BERT"), bert.encoder.layer[1], []
    own = layer.forward
    layer.forward = lambda *args, **kwargs: (seen.append(1), own(*args, **kwargs))[1]
    run(bert, given)
    assert seen == [1]


def test_no_layer_at_all(bert):
    given = inputs("BERT", "none")
    del bert.encoder.layer[:]
    with torch.inference_mode():
        torch.testing.assert_close(run(bert, given), bert.embeddings(given["input_ids"]))


def test_a_hook_for_all_modules_sees_every_layer(bert):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    run(bert, inputs("BERT"))
    handle.remove()
    assert all(layer in seen for layer in bert.encoder.layer)


def test_a_replaced_or_removed_layer_counts(bert):
    given = inputs("BERT")
    bert.encoder.layer[1] = copy.deepcopy(bert.encoder.layer[0])
    expected = make("BERT")
    expected.encoder.layer[1] = expected.encoder.layer[0]
    torch.testing.assert_close(
        real(run(bert, given), given), real(run(expected, given), given), rtol=1e-4, atol=1e-5
    )
    del bert.encoder.layer[1]
    del expected.encoder.layer[1]
    torch.testing.assert_close(
        real(run(bert, given), given), real(run(expected, given), given), rtol=1e-4, atol=1e-5
    )


def test_a_changed_weight_counts_in_every_layer(bert):
    given = inputs("BERT")
    before = run(bert, given)
    with torch.no_grad():
        bert.encoder.layer[1].output.LayerNorm.bias.add_(1)
    torch.testing.assert_close(real(run(bert, given), given), real(before, given) + 1, rtol=1e-4, atol=1e-5)


def test_gradients_and_training_take_the_stock_path(bert):
    given = inputs("BERT")
    bert(**given)[0].sum().backward()
    assert bert.encoder.layer[0].output.dense.bias.grad is not None
    bert.train()
    assert bert(**given)[0].requires_grad


def test_a_loop_in_training_mode_leaves_out_the_layers_that_stock_leaves_out():
    """As an encoder of sounds does, with its layers in evaluation mode."""
    stock = make("wav2vec2")
    stock.config.layerdrop = 0.5
    fast, given = hfaccel.optimize(copy.deepcopy(stock)), inputs("wav2vec2", "none")
    for model in (stock, fast):
        model.encoder.training = True
        model.encoder.dropout.p = 0.0
    for seed in range(6):
        expected, got = (torch.manual_seed(seed) and run(model, given) for model in (stock, fast))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_copies_pickles_and_restored_models(bert, calls):
    given = inputs("BERT")
    expected = run(bert, given)
    for copied in (copy.deepcopy(bert), pickle.loads(pickle.dumps(bert))):
        assert len(stacks(copied)) == 1
        torch.testing.assert_close(run(copied, given), expected, rtol=0, atol=0)
    assert set(calls) == {2}
    name = type(make("BERT").encoder)
    from hfaccel.engine import restore

    restore(bert)
    assert type(bert.encoder) is name and not stacks(bert)


def test_a_loop_that_does_more_than_call_its_layers_keeps_it():
    class Doubled(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, hidden_states, attention_mask=None):
            for layer in self.layer:
                hidden_states = 2 * layer(hidden_states, attention_mask)
            return (hidden_states,)

    bert = make("BERT")
    model = nn.ModuleDict({"encoder": Doubled(bert.encoder.layer)})
    hidden = torch.randn(2, 5, 64)
    with torch.inference_mode():
        expected = model["encoder"](hidden)[0]
    outcomes = transform(model)
    assert not stacks(model)
    assert any(o.subject == "Doubled" and not o.applied and "a trial differed" in o.reason for o in outcomes)
    with torch.inference_mode():
        torch.testing.assert_close(model["encoder"](hidden)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_report_says_so():
    model = hfaccel.optimize(make("BERT"))
    assert "its layers run in one call" in str(hfaccel.report(model))


def test_together_is_one_layer_after_another(bert):
    hidden = torch.randn(2, 5, 64)
    with torch.inference_mode():
        one_by_one = hidden
        for layer in bert.encoder.layer:
            one_by_one = layer(one_by_one)
        torch.testing.assert_close(Together(bert.encoder.layer)(hidden), one_by_one, rtol=0, atol=0)


def test_what_a_loop_writes_to_itself_is_kept(calls):
    """The loop runs on a shadow of the module."""
    stock, given = make("BERT"), inputs("BERT")

    class Counting(type(stock.encoder)):
        def forward(self, hidden_states, *args, **kwargs):
            self.calls = getattr(self, "calls", 0) + 1
            self.register_buffer("given", hidden_states, persistent=False)
            return super().forward(hidden_states, *args, **kwargs)

    stock.encoder.__class__ = Counting
    fast = hfaccel.optimize(copy.deepcopy(stock))
    before = fast.encoder.calls
    calls.clear()
    for number in range(1, 4):
        run(fast, given)
        assert fast.encoder.calls == before + number and calls == [2] * number
        assert fast.encoder.given.shape == (3, 17, 64)

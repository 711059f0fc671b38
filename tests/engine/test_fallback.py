"""Which path ran: a warning tells once, and HFACCEL_STRICT=1 makes the slower one an error."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from conftest import make_bert, states
from torch import nn

import hfaccel
from hfaccel.engine.kernels import kernels_problem
from hfaccel.errors import StockPathError, StockPathWarning

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)


@pytest.fixture
def fast():
    return hfaccel.optimize(make_bert(hidden_size=64, intermediate_size=128))


def texts(call):
    """Of the warnings that a call gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught if each.category is StockPathWarning]


def test_the_warning_points_at_the_programs_own_line(fast, batch):
    """And not at one of torch's or transformers', through which the layer is called."""
    hook(fast)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        states(fast, batch)
    (found,) = (each for each in caught if each.category is StockPathWarning)
    assert found.filename == states.__code__.co_filename
    assert found.lineno in range(states.__code__.co_firstlineno, states.__code__.co_firstlineno + 10)


def hook(model):
    model.encoder.layer[0].output.dense.register_forward_hook(lambda *_: None)


def test_a_fallback_is_told_once_for_each_model_and_reason(fast, batch):
    copied = copy.deepcopy(fast)
    for model in (fast, copied, pickle.loads(pickle.dumps(copied))):
        assert texts(lambda model=model: states(model, batch)) == []
        hook(model)
        (text,) = texts(lambda model=model: states(model, batch))
        assert "BertModel" in text and "a submodule has a hook" in text and "remove the hook" in text
        assert texts(lambda model=model: states(model, batch)) == []
        model.encoder.layer[1].attention.self.query.weight.data = torch.zeros(64, 64, dtype=torch.double)
        with pytest.raises(RuntimeError):
            states(model, batch)  # stock's own error


def test_numbers_in_a_reason_make_no_new_one(fast):
    layer = fast.encoder.layer[0]
    with torch.inference_mode():
        found = texts(lambda: [layer(torch.randn(2, length, 64)[0]) for length in (3, 4, 5)])
    assert len(found) == 1


def test_gradients_and_training_are_no_surprise(fast, batch):
    assert texts(lambda: fast(**batch)) == []
    assert texts(lambda: fast.train()(**batch)) == []


def test_a_linear_layer_alone_tells_too():
    fast = hfaccel.optimize(nn.Sequential(nn.Linear(512, 512)).eval())
    if hfaccel.report(fast).outcomes[0].applied:
        fast.half()
        with torch.inference_mode():
            (text,) = texts(lambda: fast(torch.randn(2, 512).half()))
        assert "float16" in text
        assert sum(hfaccel.report(fast).stock_calls.values()) == 1


def test_a_user_can_filter_the_warning(fast, batch):
    hook(fast)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", StockPathWarning)
        states(fast, batch)


@pytest.mark.parametrize("reason", ["a submodule has a hook", "gradients are enabled"])
def test_strict_refuses_the_stock_path(fast, batch, monkeypatch, reason):
    monkeypatch.setenv("HFACCEL_STRICT", "1")
    states(fast, batch)
    if "hook" in reason:
        hook(fast)
    with pytest.raises(StockPathError, match=reason) as raised:
        states(fast, batch) if "hook" in reason else fast(**batch)
    assert isinstance(raised.value, hfaccel.HfaccelError) and "Remedy" in str(raised.value)


def test_strict_lets_a_model_train_and_optimize_try(batch, monkeypatch):
    monkeypatch.setenv("HFACCEL_STRICT", "1")
    fast = hfaccel.optimize(make_bert(hidden_size=64, intermediate_size=128))
    fast.train()(**batch)[0].sum().backward()
    monkeypatch.setenv("HFACCEL_STRICT", "0")
    fast.eval()(**batch)

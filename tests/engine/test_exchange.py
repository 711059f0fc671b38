"""Weights that something else holds: weak references, graphs that were not run yet, hooks."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from conftest import make_bert, states
from torch import nn

import hfaccel
from hfaccel.engine.kernels import kernels_problem

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)


@pytest.fixture
def model():
    return make_bert(hidden_size=64, intermediate_size=128)


def query(model):
    return model.encoder.layer[1].attention.self.query


WAYS = {
    "restore": hfaccel.restore,
    "to": lambda model: model.to(torch.bfloat16),
    "double": lambda model: model.double(),
    "share_memory": lambda model: model.share_memory(),
    "data": lambda model: setattr(query(model).weight, "data", query(model).weight.double()),
}
EACH_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@EACH_WAY
def test_weak_references_are_no_obstacle(model, way):
    fast, stock = hfaccel.optimize(copy.deepcopy(model)), model
    held = {name: weakref.ref(parameter) for name, parameter in fast.named_parameters()}
    way(fast), way(stock)
    expected = dict(stock.named_parameters())
    for name, parameter in fast.named_parameters():
        assert held[name]() is parameter
        assert parameter.dtype == expected[name].dtype and torch.equal(parameter, expected[name])


def test_a_model_with_weak_references_is_packed(model, batch):
    expected = states(model, batch)
    held = [weakref.ref(parameter) for parameter in model.parameters()]
    fast = hfaccel.optimize(model)
    assert "cannot be exchanged" not in str(hfaccel.report(fast))
    assert all(each() is parameter for each, parameter in zip(held, fast.parameters(), strict=True))
    torch.testing.assert_close(states(fast, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", ["restore", "share_memory", "data"])  # stock itself raises after the others
def test_a_graph_made_before_gives_the_gradients_of_then(model, batch, way):
    fast, stock = hfaccel.optimize(copy.deepcopy(model)), model
    loss = fast(**batch)[0].square().mean()
    WAYS[way](fast)
    gc.collect()
    loss.backward()
    stock(**batch)[0].square().mean().backward()
    for (name, parameter), expected in zip(fast.named_parameters(), stock.parameters(), strict=True):
        assert (parameter.grad is None) == (expected.grad is None), name
        if expected.grad is not None:
            torch.testing.assert_close(parameter.grad.float(), expected.grad, rtol=1e-3, atol=1e-6)


def test_a_graph_made_before_optimize_gives_the_gradients_of_then(model, batch):
    stock = copy.deepcopy(model)
    losses = [each(**batch)[0].square().mean() for each in (model, stock)]
    fast = hfaccel.optimize(model)
    for loss in losses:
        loss.backward()
    for parameter, expected in zip(fast.parameters(), stock.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(parameter.grad, expected.grad)


def test_gradients_of_before_and_after_add_up(model, batch):
    fast, stock = hfaccel.optimize(copy.deepcopy(model)), model
    for each in (fast, stock):
        losses = [each(**batch)[0].square().mean()]
        if each is fast:
            hfaccel.restore(fast)
        losses.append(each(**batch)[0].mean())
        for loss in losses:
            loss.backward()
    torch.testing.assert_close(query(fast).weight.grad, query(stock).weight.grad, rtol=1e-3, atol=1e-6)


def test_hooks_of_a_parameter_stay(model, batch):
    seen = []
    weight = query(model).weight
    weight.register_hook(lambda gradient: seen.append("gradient"))
    weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter is weight))
    fast = hfaccel.optimize(model)
    before = fast(**batch)[0].sum()
    hfaccel.restore(fast)
    after = fast(**batch)[0].sum()
    for loss in (before, after):
        loss.backward()
        assert seen == ["gradient", True]
        seen.clear()


def test_restore_is_all_or_nothing(model, batch):
    fast = hfaccel.optimize(model)
    expected, kinds = states(fast, batch), [type(each) for each in fast.modules()]
    weights = [type(parameter) for parameter in fast.parameters()]
    held = torch._C._WeakTensorRef(query(fast).weight)  # which torch cannot exchange
    with pytest.raises(hfaccel.HfaccelError, match="the model stays as it was"):
        hfaccel.restore(fast)
    assert [type(each) for each in fast.modules()] == kinds
    assert [type(parameter) for parameter in fast.parameters()] == weights
    assert torch.equal(states(fast, batch), expected) and not hfaccel.report(fast).stock_calls
    del held
    assert type(query(hfaccel.restore(fast))) is nn.Linear
    torch.testing.assert_close(states(fast, batch), expected, rtol=0, atol=1e-5)

"""What every backend must keep, as functions over a backend. tests/backends/test_contract.py runs them
over all registered ones; a package with a backend of its own can do the same."""

from __future__ import annotations

import copy

import torch
from conftest import make_bert, states

from hfaccel.backends import Backend, Options
from hfaccel.outcome import Outcome


def keeps_results(backend: Backend, batch) -> None:
    model = make_bert()
    expected = states(copy.deepcopy(model), batch)
    outcomes = backend.transform(model, Options())
    assert all(isinstance(outcome, Outcome) and outcome.reason for outcome in outcomes)
    torch.testing.assert_close(states(model, batch), expected, rtol=0, atol=1e-5)


def keeps_the_model(backend: Backend, batch) -> None:
    model = make_bert()
    kind, names, parameters = type(model), list(model.state_dict()), dict(model.named_parameters())
    backend.transform(model, Options())
    assert type(model) is kind and list(model.state_dict()) == names
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())


def restores_bit_for_bit(backend: Backend, batch) -> None:
    model = make_bert()
    classes = [type(module) for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = states(model, batch)
    backend.transform(model, Options())
    states(model, batch)
    backend.restore(model)
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(states(model, batch), expected)


def answers_instead_of_raising(backend: Backend, batch) -> None:
    assert isinstance(backend.available(), str)
    for odd in (torch.nn.Module(), torch.nn.ReLU(), torch.nn.Linear(3, 3).double()):
        assert isinstance(backend.supports(odd), str)
        backend.transform(odd, Options())
        backend.restore(odd)


CONTRACT = (keeps_results, keeps_the_model, restores_bit_for_bit, answers_instead_of_raising)

"""What every backend must keep, as functions over a backend. tests/backends/test_contract.py runs them
over all registered ones; a package with a backend of its own can do the same."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

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


def keeps_the_output(backend: Backend, batch) -> None:
    """The same type with the same fields, whatever is asked for and however the model is called."""
    model = make_bert()
    calls = [
        {},
        {"return_dict": False},
        {"output_hidden_states": True},
        {"token_type_ids": torch.ones_like(batch["input_ids"])},
    ]
    with torch.inference_mode():
        expected = [copy.deepcopy(model)(**batch, **call) for call in calls]
        backend.transform(model, Options())
        got = [model(**batch, **call) for call in calls]
        positional = model(batch["input_ids"], batch["attention_mask"])
    for one, two in zip([*got, positional], [*expected, expected[0]], strict=True):
        assert type(one) is type(two)
        mask = batch["attention_mask"]
        torch.testing.assert_close(_tensors(one, mask), _tensors(two, mask), rtol=0, atol=1e-5)


def _tensors(output, mask) -> list[torch.Tensor]:
    """All tensors of an output. States of padding may be anything: they are left out."""
    values = output if isinstance(output, tuple) else output.to_tuple()
    parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return [part[mask.bool()] if part.dim() == 3 else part for part in parts]


def takes_any_shape(backend: Backend, batch) -> None:
    model = make_bert()
    stock = copy.deepcopy(model)
    backend.transform(model, Options())
    for shape in ((1, 1), (1, 33), (5, 1), (7, 40), (1, 512)):
        ids = {"input_ids": torch.randint(5, 1000, shape)}
        torch.testing.assert_close(states(model, ids), states(stock, ids), rtol=0, atol=1e-5)


def raises_as_the_model_does(backend: Backend, batch) -> None:
    """Tokens and positions outside the tables are errors, not numbers."""
    model = make_bert()
    backend.transform(model, Options())
    for ids in (torch.full((1, 4), 1000), torch.ones(1, 513, dtype=torch.long)):
        try:
            states(model, {"input_ids": ids})
        except (IndexError, RuntimeError):
            continue
        raise AssertionError(f"input of shape {tuple(ids.shape)} was computed")


def sees_new_weights(backend: Backend, batch) -> None:
    model = make_bert()
    backend.transform(model, Options())
    states(model, batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    stock = make_bert()
    stock.load_state_dict(model.state_dict())
    torch.testing.assert_close(states(model, batch), states(stock, batch), rtol=0, atol=1e-5)


def works_in_copies_and_threads(backend: Backend, batch) -> None:
    model = make_bert()
    expected = states(model, batch)
    backend.transform(model, Options())
    copies = [model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda number: states(copies[number % 3], batch), range(12)):
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def keeps_results_within_precision(backend: Backend, batch) -> None:
    """Lower precision changes results by as much as the precision allows, or not at all with a reason."""
    for asked in ({"dtype": torch.bfloat16}, {"quantization": "int8"}):
        model = make_bert()
        expected = states(model, batch)
        outcomes = backend.transform(model, Options(**asked, samples=(batch, batch)))
        assert all(outcome.reason for outcome in outcomes)
        got = states(model, batch).float()
        assert (got - expected).norm() / expected.norm() < 0.05


def keeps_the_model(backend: Backend, batch) -> None:
    model = make_bert()
    kind, names, parameters = type(model), list(model.state_dict()), dict(model.named_parameters())
    backend.transform(model, Options())
    assert isinstance(model, kind) and str(type(model)) == str(kind) and list(model.state_dict()) == names
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


CONTRACT = (
    keeps_results,
    keeps_results_within_precision,
    keeps_the_output,
    takes_any_shape,
    raises_as_the_model_does,
    sees_new_weights,
    works_in_copies_and_threads,
    keeps_the_model,
    restores_bit_for_bit,
    answers_instead_of_raising,
)

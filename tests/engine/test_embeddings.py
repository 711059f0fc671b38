"""Embeddings in one pass: the same results, and as before where anything is out of the ordinary."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from encoders import inputs, make, real, run
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hfaccel
from hfaccel.engine import transform
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers import embeddings
from hfaccel.engine.layers.embeddings import FusedEmbeddings
from hfaccel.replacement import replace

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)

FUSED = ["BERT", "RoBERTa", "XLM-R", "CamemBERT", "ELECTRA", "DistilBERT", "ALBERT", "MPNet", "ModernBERT"]
FUSED += ["NomicBERT", "DeBERTa-v2"]


def fused(model):
    return [module for module in model.modules() if isinstance(module, FusedEmbeddings)]


@pytest.fixture
def sums(number_of_each_call):
    """How many summands each call of the kernel had."""
    return number_of_each_call(embeddings, "embed", lambda value, shape, norm: len(value.summands))


@pytest.fixture
def bert():
    model = make("BERT")
    transform(model)
    return model


def pair(name="BERT"):
    """A model's embeddings as they are, and fused."""
    stock = make(name)
    model = copy.deepcopy(stock)
    transform(model)
    (module,) = fused(model)
    path = next(path for path, each in model.named_modules() if each is module)
    return stock.get_submodule(path), module


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_results_are_equal_and_come_from_the_kernel(name, side, sums):
    stock, module = pair(name)
    ids = inputs(name, side)["input_ids"]
    sums.clear()
    with torch.inference_mode():
        torch.testing.assert_close(module(ids), stock(ids), rtol=1e-5, atol=1e-5)
    assert len(sums) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"token_type_ids": torch.ones(3, 5, dtype=torch.long)},
        {"position_ids": torch.arange(4, 9)[None]},
        {"position_ids": torch.randint(20, (3, 5))},
        {"position_ids": torch.arange(5).expand(3, 5), "token_type_ids": torch.ones(1, 5, dtype=torch.long)},
        {"past_key_values_length": 3},
    ],
)
def test_every_argument_counts(arguments, sums):
    stock, module = pair()
    ids = torch.randint(500, (3, 5))
    sums.clear()
    with torch.inference_mode():
        torch.testing.assert_close(module(ids, **arguments), stock(ids, **arguments), rtol=1e-5, atol=1e-5)
    assert sums == [3]


def test_embeddings_that_were_given_are_not_looked_up(sums):
    stock, module = pair()
    given = torch.randn(2, 6, 64)
    sums.clear()
    with torch.inference_mode():
        torch.testing.assert_close(module(inputs_embeds=given), stock(inputs_embeds=given))
    assert sums == []


@pytest.mark.parametrize("ids", [[[500]], [[-1]], [[0, 1 << 40]]])
def test_ids_of_no_word_raise_the_stock_error(ids):
    stock, module = pair()
    with torch.inference_mode():
        with pytest.raises(IndexError) as expected:
            stock(torch.tensor(ids))
        with pytest.raises(IndexError) as got:
            module(torch.tensor(ids))
    assert str(got.value) == str(expected.value)


@pytest.mark.parametrize("name", ["BERT", "RoBERTa", "DistilBERT", "MPNet"])
def test_texts_longer_than_the_positions_raise_the_stock_error(name):
    stock, module = pair(name)
    errors = []
    for each in (stock, module):
        with torch.inference_mode(), pytest.raises((RuntimeError, IndexError)) as caught:
            each(torch.randint(5, 500, (1, 3000)))
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_nothing_to_look_up(shape):
    stock, module = pair()
    ids = torch.zeros(shape, dtype=torch.long)
    with torch.inference_mode():
        torch.testing.assert_close(module(ids), stock(ids))


def test_gradients_are_those_of_the_stock_module(sums):
    stock, module = pair()
    ids = torch.randint(500, (2, 5))
    sums.clear()
    for each in (stock, module):
        each(ids).square().sum().backward()
    torch.testing.assert_close(module.word_embeddings.weight.grad, stock.word_embeddings.weight.grad)
    assert sums == []


def test_changes_of_the_parts_count(sums):
    stock, module = pair()
    ids = torch.randint(500, (2, 5))
    for each in (stock, module):
        torch.manual_seed(1)
        each.token_type_embeddings = nn.Embedding(2, 64)
        with torch.no_grad():
            each.word_embeddings.weight.mul_(2)
            each.LayerNorm.bias.add_(1)
            each.LayerNorm.eps = 0.1
    sums.clear()
    with torch.inference_mode():
        torch.testing.assert_close(module(ids), stock(ids), rtol=1e-5, atol=1e-5)
    assert sums == [3]


def test_a_hook_before_a_part_changes_what_it_is_given(sums):
    stock, ids = make("BERT"), inputs("BERT", side="none")
    model = copy.deepcopy(stock)
    transform(model)
    for each in (stock, model):
        each.embeddings.word_embeddings.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        each.embeddings.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"input_ids": kwargs["input_ids"].flip(1)}),
            with_kwargs=True,
        )
    ids["input_ids"] = ids["input_ids"].clamp(max=498)
    sums.clear()
    torch.testing.assert_close(run(model, ids), run(stock, ids), rtol=0, atol=1e-4)
    assert not sums


def test_a_hook_on_a_part_is_called(bert, sums):
    seen = []
    handle = bert.embeddings.LayerNorm.register_forward_hook(lambda *_: seen.append(1))
    sums.clear()
    run(bert, inputs("BERT"))
    assert seen == [1] and sums == []
    handle.remove()
    handle = bert.embeddings.word_embeddings.register_forward_hook(lambda module, args, out: out * 0)
    given = inputs("BERT")
    others = torch.where(given["attention_mask"].bool(), 3, given["input_ids"])
    expected = run(bert, given | {"input_ids": others})
    torch.testing.assert_close(run(bert, inputs("BERT")), expected)
    handle.remove()
    run(bert, inputs("BERT"))
    assert len(sums) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_left_to_torch(dtype, sums):
    stock, module = pair()
    ids = torch.randint(500, (2, 5))
    sums.clear()
    with torch.inference_mode():
        got = module.to(dtype)(ids)
        torch.testing.assert_close(got, stock.to(dtype)(ids))
    assert sums == []


def test_autocast_is_left_to_torch(bert, sums):
    sums.clear()
    with torch.autocast("cpu", torch.bfloat16):
        run(bert, inputs("BERT"))
    assert sums == []


class Scaled(nn.Module):
    """Whether the sum is multiplied depends on an argument that the trial does not give."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(50, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, ids, mask=None, way="method"):
        value = self.words(ids) + self.places(torch.arange(ids.shape[1])[None])
        if mask is not None:
            ways = {"method": lambda: value * mask, "reflected": lambda: mask * value}
            ways |= {"function": lambda: torch.mul(value, mask), "attribute": lambda: value.mul(mask)}
            value = ways[way]()
        return self.norm(value)


@pytest.mark.parametrize("way", ["method", "reflected", "function", "attribute"])
def test_what_is_done_with_the_sum_is_done(way):
    stock = Scaled().eval()
    module = copy.deepcopy(stock)
    ((_, found, problem),) = embeddings.embeddings_of(nn.ModuleList([module]))
    assert found is module and not problem
    replace(module, FusedEmbeddings)
    ids, mask = torch.randint(50, (2, 4)), torch.rand(2, 4, 1)
    with torch.inference_mode():
        torch.testing.assert_close(module(ids, mask, way), stock(ids, mask, way))


class Strange(Scaled):
    def forward(self, ids):
        return self.norm(self.words(ids).detach().clone())


def test_what_takes_no_sum_is_left():
    ((*_, problem),) = embeddings.embeddings_of(nn.ModuleList([Strange().eval()]))
    assert problem == "its norm is not given a sum of embeddings in float32"


def test_copies_pickles_and_restored_models(bert):
    expected = run(bert, inputs("BERT"))
    for other in (copy.deepcopy(bert), pickle.loads(pickle.dumps(bert))):
        assert fused(other)
        torch.testing.assert_close(run(other, inputs("BERT")), expected)
    keys = set(bert.state_dict())
    hfaccel.engine.restore(bert)
    assert not fused(bert) and set(bert.state_dict()) == keys
    given = inputs("BERT")
    torch.testing.assert_close(real(run(bert, given), given), real(expected, given), rtol=1e-4, atol=1e-5)


def test_the_report_names_them():
    model = make("BERT")
    outcomes = {outcome.subject: outcome for outcome in transform(model)}
    assert outcomes["BertEmbeddings"].applied


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3), min_size=1, max_size=3))
def test_shapes_are_broadcast_as_torch_does(shapes):
    sizes = [torch.Size(shape) for shape in shapes]
    try:
        expected = tuple(torch.broadcast_shapes(*sizes))
    except RuntimeError:
        expected = None
    assert embeddings._broadcast(sizes) == expected


def test_what_a_forward_writes_to_itself_is_kept(sums):
    """The forward runs on a shadow of the module."""
    stock = make("BERT")

    class Counting(type(stock.embeddings)):
        def forward(self, *args, **kwargs):
            self.calls = getattr(self, "calls", 0) + 1
            self.last = super().forward(*args, **kwargs)
            return self.last

    stock.embeddings.__class__ = Counting
    fast = hfaccel.optimize(copy.deepcopy(stock))
    module, given = fast.embeddings, inputs("BERT")
    before = module.calls
    sums.clear()
    with torch.inference_mode():
        for number in range(1, 4):
            result = module(given["input_ids"])
            assert module.last is result and module.calls == before + number and len(sums) == number

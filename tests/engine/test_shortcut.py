"""From ids to the result without the model's forward: the same, and never where a call asks for more."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import threading
import weakref

import pytest
import torch
from conftest import at_once
from encoders import TEXTS, inputs, make, random_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hfaccel
from hfaccel.engine import restore, transform
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers.call import Call
from hfaccel.engine.models.shortcut import Shortcut, ShortModel
from hfaccel.errors import HfaccelError

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)

SHORT = ["BERT", "RoBERTa", "XLM-R", "CamemBERT", "DistilBERT"]
IDS = torch.randint(5, 500, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def taken(monkeypatch):
    """For each call of a shortcut whether it was taken."""
    results, original = [], Shortcut.__call__

    def watched(self, *args):
        result = original(self, *args)
        results.append(result is not None)
        return result

    monkeypatch.setattr(Shortcut, "__call__", watched)
    return results


@pytest.fixture
def bert(taken):
    model = make("BERT")
    transform(model)
    taken.clear()
    return model


def same(got, expected):
    assert type(got) is type(expected) and list(got) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)


def check(model, *args, stock=None, **kwargs):
    """The optimized model and the stock one give the same."""
    with torch.inference_mode():
        same(model(*args, **kwargs), (stock or make("BERT"))(*args, **kwargs))


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("length", [1, 2, 9, 300])
@pytest.mark.parametrize("masked", [False, True])
def test_results_are_equal_and_come_by_the_shortcut(name, length, masked, taken):
    stock = make(name)
    model = copy.deepcopy(stock)
    transform(model)
    taken.clear()
    ids = torch.randint(5, 500, (2, length), generator=torch.Generator().manual_seed(length))
    mask = {"attention_mask": torch.ones_like(ids)} if masked else {}
    check(model, ids, stock=stock, **mask)
    check(model, input_ids=ids, stock=stock, return_dict=True, output_attentions=False, **mask)
    assert taken == [True, True]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_every_text_model_gives_the_same(name, side):
    stock, arguments = make(name), inputs(name, side)
    model = copy.deepcopy(stock)
    transform(model)
    with torch.inference_mode():
        got, expected = model(**arguments)[0], stock(**arguments)[0]
    mask = arguments.get("attention_mask", torch.ones_like(arguments["input_ids"])).bool()
    torch.testing.assert_close(got[mask], expected[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_of_tokens_count(taken, dtype):
    stock = make("BERT")
    if dtype is torch.bfloat16:
        try:
            model = hfaccel.optimize(stock, dtype=dtype, backend="torch")
        except HfaccelError as error:
            pytest.skip(str(error))
    else:
        model = hfaccel.optimize(stock, backend="torch")
    taken.clear()
    types = torch.randint(2, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got, expected = (each(IDS, token_type_ids=types) for each in (model, stock))
    assert taken == [True]
    tolerance = 1e-5 if dtype is torch.float32 else 0.1
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, rtol=0, atol=tolerance)


ORDINARY = {
    "padding": {"attention_mask": torch.tensor([[1] * 9, [1] * 5 + [0] * 4])},
    "positions": {"position_ids": torch.arange(3, 12)[None]},
    "hidden states": {"output_hidden_states": True},
    "attentions": {"output_attentions": True},
    "a tuple": {"return_dict": False},
    "a mask of floats": {"attention_mask": torch.ones(2, 9)},
    "a mask of pairs": {"attention_mask": torch.ones(2, 1, 9, 9, dtype=torch.bool)},
    "types of another shape": {"token_type_ids": torch.zeros(1, 9, dtype=torch.long)},
}


def test_hidden_states_that_were_asked_for_once_do_not_close_it(bert, taken):
    for _ in range(2):
        with torch.inference_mode():
            got, expected = (model(IDS, output_hidden_states=True) for model in (bert, make("BERT")))
        for one, other in zip(got.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        check(bert, IDS)
    assert taken == [False, True, False, True]


@pytest.mark.parametrize("arguments", ORDINARY.values(), ids=ORDINARY)
def test_calls_that_ask_for_more_run_the_forward(bert, taken, arguments):
    with torch.inference_mode():
        got, expected = bert(IDS, **arguments), make("BERT")(IDS, **arguments)
    assert taken == [False]
    real = arguments.get("attention_mask", torch.ones(2, 9))
    real = real.bool() if real.dim() == 2 else torch.ones(2, 9, dtype=torch.bool)
    torch.testing.assert_close(got[0][real], expected[0][real], rtol=1e-4, atol=1e-5)
    assert type(got) is type(expected) and len(got) == len(expected)


def test_embeddings_can_be_given_instead(bert):
    vectors = torch.randn(2, 5, 64)
    check(bert, inputs_embeds=vectors)


@pytest.mark.parametrize("ids", [IDS.int(), IDS[:, ::2], IDS.t(), IDS[:, :0], IDS[0]], ids=str)
def test_ids_in_other_forms_are_the_models_affair(bert, ids):
    def outcome(model):
        try:
            with torch.inference_mode():
                return model(ids)[0]
        except Exception as error:  # noqa: BLE001 (the stock model's, whatever it is)
            return f"{type(error).__name__}: {error}"

    got, expected = outcome(bert), outcome(make("BERT"))
    if isinstance(expected, str):
        assert got == expected
    else:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"input_ids": torch.tensor([[1, 500]])}, IndexError),
        ({"input_ids": torch.tensor([[1, -1]])}, IndexError),
        ({"input_ids": torch.ones(1, 513, dtype=torch.long)}, (RuntimeError, IndexError)),
        ({"input_ids": IDS, "token_type_ids": torch.full_like(IDS, 2)}, IndexError),
        ({}, ValueError),
        ({"input_ids": IDS, "inputs_embeds": torch.ones(2, 9, 64)}, ValueError),
    ],
)
def test_errors_are_the_models_own(bert, arguments, error):
    with torch.inference_mode():
        with pytest.raises(error) as expected:
            make("BERT")(**arguments)
        with pytest.raises(error) as got:
            bert(**arguments)
    assert str(got.value) == str(expected.value)


def test_names_that_a_forward_does_not_know_are_its_errors():
    from transformers.models.bert.modeling_bert import BertModel

    class Strict(BertModel):
        def forward(self, input_ids=None, attention_mask=None):
            return super().forward(input_ids, attention_mask)

    model = make("BERT")
    model.__class__ = Strict
    transform(model)
    assert isinstance(model, ShortModel)
    for value in (None, False):
        with torch.inference_mode(), pytest.raises(TypeError, match="unexpected keyword argument 'unknown'"):
            model(IDS, unknown=value)


def test_a_mask_given_by_its_place_counts(bert, taken):
    check(bert, IDS[:1], ORDINARY["padding"]["attention_mask"][:1])
    with torch.inference_mode():
        mask = ORDINARY["padding"]["attention_mask"][1:]
        got, expected = (model(IDS[1:], mask)[0] for model in (bert, make("BERT")))
    torch.testing.assert_close(got[:, :5], expected[:, :5], rtol=1e-4, atol=1e-5)
    assert taken == [False, False]


@pytest.mark.parametrize("name", ["RoBERTa", "XLM-R", "CamemBERT"])
def test_ids_of_padding_shift_positions_where_they_do(name, taken):
    stock = make(name)
    model = copy.deepcopy(stock)
    transform(model)
    taken.clear()
    ids = IDS.clone()
    ids[1, 4:6] = stock.config.pad_token_id
    check(model, ids, stock=stock)
    assert taken == [False]


def test_ids_of_padding_are_like_others_elsewhere(bert, taken):
    ids = IDS.clone()
    ids[1, 4:6] = 0
    check(bert, ids)
    assert taken == [True]


HOOKED = ["", "embeddings", "embeddings.dropout", "embeddings.word_embeddings", "encoder", "encoder.layer.1"]
HOOKED += ["encoder.layer.1.attention.self", "pooler", "pooler.dense", "pooler.activation"]


@pytest.mark.parametrize("path", HOOKED)
@pytest.mark.parametrize("before", [False, True])
def test_hooks_are_called(bert, taken, path, before):
    seen, module = [], bert.get_submodule(path)
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = register(lambda *_: seen.append(1))
    check(bert, IDS)
    assert seen == [1] and taken == [False]
    handle.remove()
    check(bert, IDS)
    assert seen == [1] and taken == [False, True]


def test_a_hook_for_all_modules_sees_the_model(bert):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    check(bert, IDS)
    handle.remove()
    assert bert in seen and bert.pooler in seen


@pytest.mark.parametrize("path", ["", "embeddings", "encoder", "pooler"])
def test_forwards_that_were_replaced_are_called(bert, taken, path):
    module, seen = bert.get_submodule(path), []
    own = module.forward
    module.forward = lambda *args, **kwargs: (seen.append(1), own(*args, **kwargs))[1]
    check(bert, IDS)
    assert seen == [1] and not any(taken)


def test_changes_of_the_config_count(bert, taken):
    bert.config.output_hidden_states = True
    with torch.inference_mode():
        assert len(bert(IDS).hidden_states) == 3
    bert.config.output_hidden_states = False
    bert.config.return_dict = False
    with torch.inference_mode():
        assert type(bert(IDS)) is tuple
    assert not any(taken)


def changed(bert, change):
    """Do the same to the optimized model and a stock one, and compare."""
    stock = make("BERT")
    for model in (bert, stock):
        with torch.no_grad():
            change(model)
    check(bert, IDS, stock=stock)


class Twice(nn.Module):
    def forward(self, values):
        return 2 * values


CHANGES = {
    "a table in place": lambda model: model.embeddings.word_embeddings.weight.mul_(2),
    "a table's memory": lambda model: setattr(
        model.embeddings.word_embeddings.weight, "data", model.embeddings.word_embeddings.weight * 2
    ),
    "a table": lambda model: setattr(
        model.embeddings, "position_embeddings", copy.deepcopy(model.embeddings.token_type_embeddings)
    ),
    "a norm in place": lambda model: model.embeddings.LayerNorm.bias.add_(1),
    "a norm's vector": lambda model: setattr(
        model.embeddings.LayerNorm, "weight", nn.Parameter(torch.full((64,), 0.5))
    ),
    "the pooler's bias": lambda model: setattr(model.pooler.dense, "bias", nn.Parameter(torch.ones(64))),
    "the pooler's weight in place": lambda model: model.pooler.dense.weight.mul_(0.5),
    "the pooler's weight": lambda model: setattr(
        model.pooler.dense, "weight", nn.Parameter(torch.ones(64, 64))
    ),
    "no pooler": lambda model: setattr(model, "pooler", None),
    "a layer more": lambda model: model.encoder.layer.append(model.encoder.layer[0]),
    "a layer less": lambda model: model.encoder.layer.__delitem__(1),
    "no layer": lambda model: model.encoder.layer.__delitem__(slice(None)),
    "a norm in a layer": lambda model: model.encoder.layer[1].output.LayerNorm.bias.add_(1),
    "a norm's epsilon": lambda model: setattr(model.embeddings.LayerNorm, "eps", 0.5),
    "a largest norm": lambda model: setattr(model.embeddings.word_embeddings, "max_norm", 0.1),
    "a table that is computed": lambda model: nn.utils.parametrize.register_parametrization(
        model.embeddings.word_embeddings, "weight", Twice()
    ),
    "a norm that is computed": lambda model: nn.utils.parametrize.register_parametrization(
        model.embeddings.LayerNorm, "bias", Twice()
    ),
    "a pooler that is computed": lambda model: nn.utils.parametrize.register_parametrization(
        model.pooler.dense, "bias", Twice()
    ),
    "a larger table": lambda model: setattr(
        model.embeddings, "word_embeddings", nn.Embedding.from_pretrained(torch.ones(600, 64))
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("called", [False, True])
def test_changes_of_the_model_count(bert, change, called):
    if called:
        check(bert, IDS)
    if change is CHANGES["a table"]:  # only two positions are left
        for model in (bert, stock := make("BERT")):
            change(model)
        check(bert, IDS[:, :2], stock=stock)
    else:
        changed(bert, change)


def test_a_copy_with_a_dropout_in_training_mode_draws_what_stock_draws(bert):
    """And looks for its shortcut when that is over."""
    stock, copied = make("BERT"), copy.deepcopy(bert)
    for model in (stock, copied):
        model.encoder.layer[0].output.dropout.train()
    for _ in range(3):
        results = []
        for model in (stock, copied):
            torch.manual_seed(0)
            with torch.inference_mode():
                results.append(model(IDS))
        same(*results)
    stock.eval(), copied.eval()
    with torch.inference_mode():
        same(copied(IDS), stock(IDS))
    assert isinstance(copied.shortcut(), Shortcut)


def test_gradients_training_and_autocast_run_the_forward(bert, taken):
    bert(IDS)[0].sum().backward()
    assert bert.embeddings.word_embeddings.weight.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert bert(IDS)[0].dtype is make("BERT")(IDS)[0].dtype
    bert.train()
    with torch.no_grad():
        bert(IDS)
    assert taken == []
    bert.eval()
    bert.embeddings.dropout.train()
    with torch.no_grad():
        bert(IDS)
    assert taken == [False]


def test_its_class_is_called_what_it_was(bert, tmp_path):
    stock = make("BERT")
    assert str(type(bert)) == str(type(stock)) and isinstance(bert, type(stock))
    assert inspect.signature(type(bert).forward) == inspect.signature(type(stock).forward)
    bert.save_pretrained(tmp_path)
    assert bert.config.architectures == ["BertModel"]
    check(type(stock).from_pretrained(tmp_path).eval(), IDS)


def test_copies_find_their_own_shortcut(bert, taken):
    check(bert, IDS)
    for copied in (copy.deepcopy(bert), pickle.loads(pickle.dumps(bert))):
        check(copied, IDS)  # the first result does not wait for it
        taken.clear()
        with torch.no_grad():
            copied.embeddings.LayerNorm.bias.add_(1)
        stock = make("BERT")
        with torch.no_grad():
            stock.embeddings.LayerNorm.bias.add_(1)
        check(copied, IDS, stock=stock)
        assert taken[-1] and isinstance(copied.shortcut(), Shortcut)
    check(bert, IDS)


@pytest.mark.filterwarnings("ignore:what is saved cannot be made again")
def test_shared_and_loaded_models_have_one(bert, taken, tmp_path):
    model = hfaccel.optimize(make("BERT"), backend="torch")
    hfaccel.save(model, tmp_path)
    loaded = hfaccel.load(tmp_path)
    check(loaded, IDS)
    taken.clear()
    check(loaded, IDS)
    assert taken[-1]
    taken.clear()
    hfaccel.memory.share(model)
    check(model, IDS)
    assert taken == [True]


def test_a_copy_with_a_hook_does_not_call_it_to_find_one(bert):
    copied, seen = copy.deepcopy(bert), []
    copied.pooler.register_forward_hook(lambda *_: seen.append(1))
    for _ in range(3):
        check(copied, IDS)
    assert seen == [1] * 3


def test_a_model_that_nobody_holds_is_gone(bert):
    copied = copy.deepcopy(bert)
    gc.collect()
    gc.disable()  # which would find it in the end
    try:
        for _ in range(2):
            check(copied, IDS)
        assert isinstance(copied.shortcut(), Shortcut)
        gone = weakref.ref(copied.encoder)
        del copied
        assert gone() is None
    finally:
        gc.enable()


def test_restore_leaves_nothing(bert):
    restore(bert)
    assert type(bert) is type(make("BERT")) and not any("shortcut" in name for name in vars(bert))


def test_the_model_within_a_model_has_one(taken):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    stock = random_vectors(BertForSequenceClassification(config))
    model = hfaccel.optimize(stock, backend="torch")
    assert isinstance(model.bert, ShortModel) and not isinstance(model, ShortModel)
    taken.clear()
    check(model, IDS, stock=stock)
    assert taken == [True]


def test_models_that_do_more_have_none():
    from transformers.models.bert.modeling_bert import BertModel

    class Doubled(BertModel):
        def forward(self, input_ids=None, **kwargs):
            result = super().forward(input_ids, **kwargs)
            result.pooler_output = result.pooler_output * 2
            return result

    stock = make("BERT")
    stock.__class__ = Doubled
    outcomes = transform(copy.deepcopy(stock))
    assert any("its result is not what" in outcome.reason for outcome in outcomes)

    class Special(BertModel):
        def forward(self, input_ids=None, **kwargs):
            ids = torch.where(input_ids == self.config.mask_token_id, 7, input_ids)
            return super().forward(ids, **kwargs)

    stock.__class__ = Special
    stock.config.mask_token_id = 103
    model = copy.deepcopy(stock)
    outcomes = transform(model)
    assert not isinstance(model, ShortModel)
    assert any("every call runs its own forward" in outcome.reason for outcome in outcomes)


def test_the_report_says_so(bert):
    model = hfaccel.optimize(make("BERT"), backend="torch")
    assert "need not run its own forward" in str(hfaccel.report(model))
    other = hfaccel.optimize(make("ELECTRA"), backend="torch")
    assert "every call runs its own forward (the input of its layers" in str(hfaccel.report(other))


def test_threads_that_look_for_one_at_once(bert, taken):
    copied = copy.deepcopy(bert)
    check(copied, IDS)
    at_once(4, lambda _: check(copied, IDS))
    assert isinstance(copied.shortcut(), Shortcut)
    taken.clear()
    check(copied, IDS)
    assert taken == [True]


def test_threads_get_their_own_results(bert):
    stock = make("BERT")
    batches = [torch.randint(5, 500, (1 + i % 3, 3 + i)) for i in range(16)]
    with torch.inference_mode():
        expected = [stock(ids).pooler_output for ids in batches]
    wrong = []

    def call(i):
        for _ in range(20):
            with torch.inference_mode():
                if not torch.allclose(bert(batches[i]).pooler_output, expected[i], atol=1e-5):
                    wrong.append(i)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 5), length=st.integers(1, 60), seed=st.integers(0, 100), types=st.booleans())
def test_any_shape(batch, length, seed, types):
    stock, model = make("BERT"), SHARED
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(500, (batch, length), generator=generator)
    kinds = {"token_type_ids": torch.randint(2, ids.shape, generator=generator)} if types else {}
    check(model, ids, stock=stock, attention_mask=torch.ones_like(ids), **kinds)


SHARED = make("BERT")
transform(SHARED)


def test_nothing_is_kept_of_a_call(bert, monkeypatch):
    """A result is the caller's own: the next call does not write over it."""
    with torch.inference_mode():
        first = bert(IDS)
        kept = first.last_hidden_state.clone(), first.pooler_output.clone()
        bert(IDS.flip(1))
    assert torch.equal(first.last_hidden_state, kept[0]) and torch.equal(first.pooler_output, kept[1])


def test_a_result_in_inference_mode_is_as_the_forwards(bert):
    with torch.no_grad():
        assert not bert(IDS)[0].is_inference()
    with torch.inference_mode():
        assert bert(IDS)[0].is_inference()


def test_a_failure_of_the_kernels_is_no_result(bert, monkeypatch):
    def fail(self, *_):
        raise MemoryError

    monkeypatch.setattr(Call, "compute", fail)
    with torch.inference_mode(), pytest.raises(MemoryError):
        bert(IDS)

"""Fused layers: which are recognised, when the stock forward runs instead, and that results are equal."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import at_once, make_bert, needs_kernels, states
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hfaccel
from hfaccel.engine.layers.layer import FusedLayer
from hfaccel.engine.layers.trial import match, trial
from hfaccel.engine.transform import transform

pytestmark = needs_kernels


def make(kind, **settings):
    import transformers

    torch.manual_seed(0)
    sizes = dict(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
    if kind == "DistilBert":
        sizes = dict(dim=256, n_layers=2, n_heads=4, hidden_dim=512)
    config = getattr(transformers, f"{kind}Config")(vocab_size=1000, **{**sizes, **settings})
    return getattr(transformers, f"{kind}Model")(config).eval()


def fused(model):
    return [module for module in model.modules() if isinstance(module, FusedLayer)]


FUSED = ["Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "DistilBert", "Data2VecText", "Ernie"]


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_families_are_fused_with_equal_results(kind, side, batch):
    model = make(kind)
    if side == "left":
        batch = {name: each.flip(1) for name, each in batch.items()}
    if side == "none":
        del batch["attention_mask"]
    expected = states(copy.deepcopy(model), batch)
    fast = hfaccel.optimize(model)
    assert len(fused(fast)) == 2
    torch.testing.assert_close(states(fast, batch), expected, rtol=0, atol=1e-5)
    assert not hfaccel.report(fast).stock_calls


# Same parts under the same names, and another computation: the trial must find out.
OTHERS = {"Esm": {"pad_token_id": 1, "mask_token_id": 2}, "MegatronBert": {}, "RoFormer": {}, "BigBird": {}}


@pytest.mark.parametrize("kind", OTHERS)
def test_layers_that_only_look_alike_are_not_fused(kind, batch):
    model = make(kind, **OTHERS[kind])
    expected = states(copy.deepcopy(model), batch)
    fast = hfaccel.optimize(model)
    assert not fused(fast)
    torch.testing.assert_close(states(fast, batch), expected, rtol=0, atol=2e-5)


def test_padding_is_computed_on_request(bert, batch):
    """unpad=False: what stock says at padding too."""
    with torch.inference_mode():
        expected = copy.deepcopy(bert)(**batch)[0]
        fast = hfaccel.optimize(bert, unpad=False)
        torch.testing.assert_close(fast(**batch)[0], expected, rtol=0, atol=1e-5)
    assert len(fused(fast)) == 2 and not hfaccel.report(fast).stock_calls


@given(
    length=st.integers(1, 40),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    left=st.booleans(),
)
@settings(max_examples=30)
def test_any_mask_gives_equal_results(length, lengths, left):
    stock, fast = pair()
    ids = torch.randint(5, 1000, (len(lengths), length))
    mask = torch.tensor([[int(position < wanted) for position in range(length)] for wanted in lengths])
    given = {"input_ids": ids, "attention_mask": mask.flip(1) if left else mask}
    torch.testing.assert_close(states(fast, given), states(stock, given), rtol=0, atol=1e-5, equal_nan=True)


PAIR = []


def pair():
    """A model and its optimized twin, made once."""
    if not PAIR:
        model = make_bert()
        PAIR.extend([copy.deepcopy(model), hfaccel.optimize(model)])
    return PAIR


@pytest.mark.parametrize("shape", [(2, 1, 17, 17), (2, 17)])
def test_masks_of_the_user_are_obeyed(shape):
    stock, fast = pair()
    given = {
        "input_ids": torch.randint(5, 1000, (2, 17)),
        "attention_mask": torch.rand(shape).gt(0.3).bool() | torch.eye(17, dtype=torch.bool)[0],
    }
    torch.testing.assert_close(states(fast, given), states(stock, given), rtol=0, atol=1e-5)


def test_hidden_states_and_pooler_are_equal(batch):
    stock, fast = (copy.deepcopy(model) for model in pair())
    with torch.inference_mode():
        expected, got = (model(**batch, output_hidden_states=True) for model in (stock, fast))
    assert len(got.hidden_states) == 3
    real = batch["attention_mask"].bool()
    for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a[real], b[real], rtol=0, atol=1e-5)
    assert not got.last_hidden_state[~real].any()  # not computed
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)
    assert not hfaccel.report(fast).stock_calls


def test_attentions_are_those_of_stock(batch):
    model = make_bert()
    model.set_attn_implementation("eager")
    stock, fast = copy.deepcopy(model), hfaccel.optimize(model)
    with torch.inference_mode():
        expected, got = (each(**batch, output_attentions=True) for each in (stock, fast))
    for a, b in zip(got.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def stock_reasons(model, call):
    fast = hfaccel.optimize(model)
    result = call(fast)
    return result, list(hfaccel.report(fast).stock_calls)


def test_a_hook_on_a_part_is_called(bert, batch):
    seen = []
    fast = hfaccel.optimize(bert)
    handle = fast.encoder.layer[0].attention.self.key.register_forward_hook(lambda *_: seen.append(1))
    states(fast, batch)
    assert seen and "a submodule has a hook" in hfaccel.report(fast).stock_calls
    handle.remove()
    seen.clear()
    states(fast, batch)
    assert not seen


def test_a_replaced_part_is_used(bert, batch):
    stock, fast = copy.deepcopy(bert), hfaccel.optimize(bert)
    states(fast, batch)
    for model in (stock, fast):
        torch.manual_seed(5)
        model.encoder.layer[1].output.dense = nn.Linear(512, 256)
    torch.testing.assert_close(states(fast, batch), states(stock, batch), rtol=0, atol=1e-5)
    assert "the submodule dense was replaced" in str(hfaccel.report(fast).stock_calls)


@pytest.mark.parametrize("part", ["attention.self.query", "attention.self.key", "intermediate.dense"])
def test_changes_in_place_are_seen(bert, batch, part):
    stock, fast = copy.deepcopy(bert), hfaccel.optimize(bert)
    states(fast, batch)
    for model in (stock, fast):
        linear = model.encoder.layer[0].get_submodule(part)
        with torch.no_grad():
            linear.weight.mul_(1.5)
            linear.bias.add_(0.5)
    torch.testing.assert_close(states(fast, batch), states(stock, batch), rtol=0, atol=1e-5)


def test_training_mode_runs_stock_with_dropout(bert, batch):
    fast = hfaccel.optimize(bert)
    fast.train()
    torch.manual_seed(0)
    first = fast(**batch)[0]
    torch.manual_seed(1)
    assert not torch.equal(first, fast(**batch)[0])
    fast.eval()
    assert "the model is in training mode" in hfaccel.report(fast).stock_calls


# Parts whose dropouts are trained alone, in a model in evaluation mode: Monte Carlo dropout.
DROPOUTS = {"all": "", "embeddings": "embeddings", "one layer": "encoder.layer.1"}
DROPOUTS |= {"one dropout": "encoder.layer.0.output.dropout"}


@pytest.mark.parametrize("path", DROPOUTS.values(), ids=DROPOUTS)
@pytest.mark.parametrize("padded", [False, True])
def test_dropouts_alone_in_training_mode_drop_what_they_drop_in_stock(bert, batch, path, padded):
    stock, fast = copy.deepcopy(bert), hfaccel.optimize(bert)
    given = batch if padded else {"input_ids": batch["input_ids"]}
    before = states(fast, given)
    for model in (stock, fast):
        for module in model.get_submodule(path).modules():
            if isinstance(module, nn.Dropout):
                module.train()
    for seed in range(2):
        expected, got = (torch.manual_seed(seed) and states(model, given) for model in (stock, fast))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        assert not torch.allclose(got, before, atol=1e-2)
    for model in (stock, fast):
        model.eval()
    torch.testing.assert_close(states(fast, given), before, rtol=0, atol=0)


def test_an_attention_alone_in_training_mode_drops_scores(bert, batch):
    stock, fast = copy.deepcopy(bert), hfaccel.optimize(bert)
    states(fast, batch)
    for model in (stock, fast):
        model.encoder.layer[0].attention.self.training = True  # which is all that it looks at
    expected, got = (torch.manual_seed(0) and states(model, batch) for model in (stock, fast))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert "the submodule self is in training mode" in hfaccel.report(fast).stock_calls


def test_gradients_equal_stock(bert, batch):
    stock, fast = copy.deepcopy(bert), hfaccel.optimize(bert)
    for model in (stock, fast):
        model(**batch)[0].square().mean().backward()
    wanted = dict(stock.named_parameters())
    for name, parameter in fast.named_parameters():
        if wanted[name].grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-3, atol=1e-6)


def test_several_threads_at_once(batch):
    stock, fast = pair()
    expected = states(stock, batch)

    def work(_):
        return all(torch.allclose(states(fast, batch), expected, atol=1e-5) for _ in range(20))

    assert all(at_once(4, work))


def test_a_decoder_sees_no_later_tokens(batch):
    model = make("Bert", is_decoder=True)
    expected = states(copy.deepcopy(model), batch)
    fast = hfaccel.optimize(model)
    assert len(fused(fast)) == 2
    torch.testing.assert_close(states(fast, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh", "tanh"])
def test_activations_are_fused(act, batch):
    model = make("Bert", hidden_act=act)
    expected = states(copy.deepcopy(model), batch)
    fast = hfaccel.optimize(model)
    assert len(fused(fast)) == 2
    torch.testing.assert_close(states(fast, batch), expected, rtol=0, atol=1e-5)


def test_an_activation_that_cannot_be_fused_is_a_reason(batch):
    fast = hfaccel.optimize(make("Bert", hidden_act="mish"))
    assert not fused(fast)
    assert "the activation MishActivation cannot be fused" in str(hfaccel.report(fast))


def test_the_trial_finds_a_different_computation(bert):
    layer = bert.encoder.layer[0]
    family, problem = match(layer)
    assert problem == "" and family.name == "BERT"

    class Scaled(type(layer.output)):
        def forward(self, hidden, residual):
            return super().forward(hidden, residual) * 1.01

    layer.output.__class__ = Scaled
    assert "differed" in trial(layer, family)
    family, problem = match(layer)
    assert family is None and problem


def test_weights_lie_in_huge_pages_in_order(bert):
    transform(bert)
    layer = bert.encoder.layer[0].attention.self
    starts = [part.weight.memory.data_ptr() for part in (layer.query, layer.key, layer.value)]
    assert starts[1] - starts[0] == starts[2] - starts[1] == 256 * 256 * 4

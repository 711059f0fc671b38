"""Every distinct layer is tried, in several shapes; layers of one kind are tried once."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from conftest import make_bert
from encoders import SETTINGS, inputs, make, run

import hfaccel
from hfaccel.engine.calls.kinds import kind_of
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers import trial
from hfaccel.engine.layers.families import candidates
from hfaccel.engine.layers.layer import FusedLayer
from hfaccel.engine.layers.trial import Trials, match, reads_index

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tried(monkeypatch):
    """The layers that are tried."""
    layers, own = [], trial.trial
    monkeypatch.setattr(trial, "trial", lambda layer, family: (layers.append(layer), own(layer, family))[1])
    return layers


def layers_of(model):
    return [module for module in model.modules() if next(candidates(module), None)]


ALIKE = ["BERT", "ELECTRA", "DistilBERT", "MPNet", "NomicBERT", "UMT5", "DeBERTa-v2, own keys"]
ALIKE += ["ViT", "CLIP vision", "YOLOS", "Whisper", "BART", "wav2vec2"]


@pytest.mark.parametrize("name", ALIKE)
def test_equal_layers_are_tried_once(name, tried):
    model, trials = make(name), Trials()
    for layer in layers_of(model):
        assert match(layer, trials)[0] is not None
    assert len(set(tried)) == 1 and len(layers_of(model)) == 2


@pytest.mark.parametrize(
    "name", ["gelu", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "quick_gelu", "silu"]
)
def test_activations_that_keep_a_function_are_alike(name):
    """A partial or a method is another object in each layer."""
    first, second = make_bert(hidden_act=name).encoder.layer
    assert kind_of(first) == kind_of(second)


DIFFERENT = {
    "an attribute of a part": lambda layer: setattr(layer.attention.self, "sliding_window", 3),
    "a number": lambda layer: setattr(layer.attention.self, "scaling", 0.5),
    "an epsilon": lambda layer: setattr(layer.output.LayerNorm, "eps", 0.1),
    "a function": lambda layer: setattr(layer.intermediate, "intermediate_act_fn", torch.nn.functional.gelu),
    "a partial": lambda layer: setattr(layer, "helper", functools.partial(max, 2)),
    "a set": lambda layer: setattr(layer, "heads", {1}),
    "a list": lambda layer: setattr(layer, "kinds", ["full", "full"]),
    "an object": lambda layer: setattr(layer, "helper", object()),
    "the mode": lambda layer: layer.output.dropout.train(),
    "a bias": lambda layer: setattr(layer.output.dense, "bias", None),
    "the config": lambda layer: setattr(layer.attention.self.config, "layer_norm_eps", 0.1),
    "a list in the config": lambda layer: setattr(layer.attention.self.config, "kinds", [1, 2]),
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_layers_with_another_configuration_are_of_another_kind(difference):
    model = make("BERT")
    first, second = model.encoder.layer
    second.attention.self.config = copy.deepcopy(model.config)
    first.attention.self.config = copy.deepcopy(model.config)
    assert kind_of(first) == kind_of(second)
    if difference == "a partial":
        first.helper = functools.partial(max, 1)
    if difference == "a function":
        del second.intermediate._modules["intermediate_act_fn"]
    DIFFERENT[difference](second)
    assert kind_of(first) != kind_of(second)


def test_an_index_counts_where_it_is_asked_for():
    first, second = make("BERT").encoder.layer
    assert kind_of(first) == kind_of(second)
    assert kind_of(first, indexed=True) != kind_of(second, indexed=True)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("Whisper", "BART")])
def test_no_family_reads_its_index(name):
    for layer in layers_of(make(name)):
        family = match(layer)[0]
        assert family is None or not reads_index(layer, family)


READING = {
    "compared": lambda self: 1.01 if self.attention.self.layer_idx == 1 else 1.0,
    "counted with": lambda self: 1.0 + self.attention.self.layer_idx % 2 / 100,
    "looked up": lambda self: [1.0, 1.01][self.attention.self.layer_idx],
    "looked up by name": lambda self: {"0": 1.0, "1": 1.01}[str(self.attention.self.layer_idx)],
    "as a flag": lambda self: 1.01 if self.attention.self.layer_idx else 1.0,
}


@pytest.mark.parametrize("way", READING)
def test_layers_that_read_their_index_are_each_tried(way, tried):
    stock = make("BERT")

    class Reading(type(stock.encoder.layer[0])):
        def forward(self, hidden_states, *args, **kwargs):
            return super().forward(hidden_states, *args, **kwargs) * READING[way](self)

    for layer in stock.encoder.layer:
        layer.__class__ = Reading
    fast, given = hfaccel.optimize(copy.deepcopy(stock)), inputs("BERT", "none")
    assert [isinstance(layer, FusedLayer) for layer in fast.encoder.layer] == [True, False]
    torch.testing.assert_close(run(fast, given), run(stock, given), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "is_special",
    [
        lambda hidden: hidden.shape[1] == 1,
        lambda hidden: hidden.shape[0] == 1,
        lambda hidden: hidden.shape[1] % 2,
    ],
    ids=["one token", "one sequence", "an odd number of tokens"],
)
def test_a_layer_that_differs_in_some_shapes_is_found_out(is_special):
    stock = make("BERT")

    class Special(type(stock.encoder.layer[0])):
        def forward(self, hidden_states, *args, **kwargs):
            result = super().forward(hidden_states, *args, **kwargs)
            return result * 1.01 if is_special(hidden_states) else result

    for layer in stock.encoder.layer:
        layer.__class__ = Special
    fast = hfaccel.optimize(copy.deepcopy(stock))
    assert not any(isinstance(layer, FusedLayer) for layer in fast.encoder.layer)
    layer = stock.encoder.layer[0]
    assert "a trial differed" in trial.trial(layer, next(candidates(layer)))

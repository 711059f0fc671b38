"""What a model's layers have seen of masks and distances is the model's own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import at_once
from encoders import inputs, make, real, run

import hfaccel
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers import call
from hfaccel.engine.layers.layer import SEEN, FusedLayer

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")


def seen(model):
    """What each of its layers shares."""
    return [vars(layer)[SEEN] for layer in model.modules() if isinstance(layer, FusedLayer)]


@pytest.mark.parametrize("name", ["BERT", "DeBERTa-v2", "T5"])
def test_the_layers_of_a_model_share_it_and_no_two_models_do(name):
    models = [hfaccel.optimize(make(name)) for _ in range(2)]
    models += [copy.deepcopy(models[0]), pickle.loads(pickle.dumps(models[0]))]
    assert all(len(seen(model)) == 2 and len(set(seen(model))) == 1 for model in models)
    assert len({seen(model)[0] for model in models}) == 4


def test_a_loaded_model_has_its_own(tmp_path):
    fast = hfaccel.optimize(make("T5"))
    with pytest.warns(RuntimeWarning, match="the model was not loaded from a checkpoint"):
        hfaccel.save(fast, tmp_path)
    loaded = hfaccel.load(tmp_path)
    assert len(set(seen(loaded))) == 1 and seen(loaded)[0] is not seen(fast)[0]


def test_a_copy_has_seen_nothing():
    fast, mask = hfaccel.optimize(make("BERT")), torch.zeros(2, 1, 1, 9)
    with torch.inference_mode():
        fast.encoder.layer[0](torch.randn(2, 9, 64), mask)
    assert seen(fast)[0].masks._last is not None
    assert seen(copy.deepcopy(fast))[0].masks._last is None


def test_models_that_are_called_in_turn_read_their_masks_once(number_of_each_call):
    fast = [hfaccel.optimize(make("T5")) for _ in range(2)]
    masks = [torch.zeros(2, 1, 1, 9) for _ in fast]
    masks[1][1, ..., 5:] = torch.finfo(torch.float32).min
    read = number_of_each_call(call, "read_mask", lambda mask, *_: mask)
    hidden = torch.randn(2, 9, 64)
    results = [[], []]
    for _ in range(3):
        for number, (model, mask) in enumerate(zip(fast, masks, strict=True)):
            with torch.inference_mode():
                results[number].append(model.encoder.block[0](hidden, mask)[0])
    assert [id(mask) for mask in read] == [id(mask) for mask in masks]
    assert all(torch.equal(each[0], other) for each in results for other in each)
    assert not results[1][0][1, 5:].any() and results[0][0][1, 5:].any()


def test_models_with_one_mask_at_once():
    """Of the same mask one leaves out padding, and the other computes it."""
    stock, given = make("BERT"), inputs("BERT")
    fast = [hfaccel.optimize(make("BERT"), unpad=unpad) for unpad in ("auto", False)]
    expected = run(stock, given)

    def work(number):
        results = [run(fast[number % 2], given) for _ in range(6)]
        if number % 2:
            return all(torch.allclose(each, expected, atol=1e-5) for each in results)
        return all(torch.allclose(real(each, given), real(expected, given), atol=1e-5) for each in results)

    assert all(at_once(4, work))

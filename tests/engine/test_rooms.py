"""A cache that grows in place never shows its owner, or the owner of a copy, anything but what is his."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import hfaccel
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers import rooms
from hfaccel.engine.layers.roomed import place_of

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=100
)
IDS = torch.arange(1, 41)[None]


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **SIZES)).eval()


def mistral():
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=6, **SIZES)).eval()


def gemma():
    """Layers with windows and without, which run in one call."""
    torch.manual_seed(0)
    config = Gemma2Config(num_key_value_heads=2, head_dim=16, sliding_window=30, **SIZES)
    return Gemma2ForCausalLM(config).eval()


class Both:
    """A stock model and its optimized one, each with a cache, which are given the same."""

    def __init__(self, model):
        self.models = model, hfaccel.optimize(copy.deepcopy(model), backend="torch")
        self.caches = [DynamicCache(config=model.config) for _ in range(2)]

    def step(self, ids, caches=None):
        results = []
        for model, cache in zip(self.models, caches or self.caches, strict=True):
            with torch.inference_mode():
                results.append(model(ids, past_key_values=cache, use_cache=True).logits)
        torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5)
        self.same(caches or self.caches)

    def same(self, caches):
        for stock, fast in zip(*(cache.layers for cache in caches), strict=True):
            torch.testing.assert_close(fast.keys, stock.keys, rtol=0, atol=1e-5)
            torch.testing.assert_close(fast.values, stock.values, rtol=0, atol=1e-5)
        stock, fast = caches
        assert fast.get_seq_length() == stock.get_seq_length()

    def check_stock_calls(self):
        assert not hfaccel.report(self.models[1]).stock_calls


@pytest.fixture(params=[llama, mistral])
def both(request):
    return Both(request.param())


def test_tokens_one_by_one_and_in_lots(both, monkeypatch):
    monkeypatch.setattr(rooms, "LEAST", 4)  # so that memory is soon full
    for first, last in ((0, 9), (9, 10), (10, 11), (11, 15), (15, 16), (16, 40)):
        both.step(IDS[:, first:last])
    both.check_stock_calls()


@pytest.mark.parametrize("padding", [0, 3, 1500])
def test_a_prompt_in_several_pieces(both, padding):
    """The kernels compute 1,024 rows at a time, all layers of them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 100, (1, 2300), generator=generator)
    mask = (torch.arange(2300) >= padding).long()[None]
    with torch.inference_mode():
        expected, got = (model(ids, attention_mask=mask).logits[:, padding:] for model in both.models)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    both.check_stock_calls()


def test_memory_is_used_again_until_it_is_full(both):
    both.step(IDS[:, :9])
    memory = both.caches[1].layers[0].keys.untyped_storage().data_ptr()
    both.step(IDS[:, 9:10])
    layers = both.caches[1].layers
    assert {layer.keys.untyped_storage().data_ptr() for layer in layers} == {memory}


def test_views_that_a_program_holds_stay_as_they_are(both):
    both.step(IDS[:, :5])
    keys = both.caches[1].layers[1].keys
    before = keys.clone()
    both.step(IDS[:, 5:6])
    for cache in both.caches:
        cache.layers[1].keys, cache.layers[1].values
    assert torch.equal(keys, before)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_goes_its_own_way(both, way):
    both.step(IDS[:, :5])
    copies = [way(cache) for cache in both.caches]
    both.step(IDS[:, 5:7])
    both.step(IDS[:, 20:22], copies)
    both.step(IDS[:, 7:8])
    both.step(IDS[:, 22:23], copies)


def shallow(cache):
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def test_two_caches_that_share_tensors_do_not_write_over_each_other(both):
    both.step(IDS[:, :5])
    copies = [shallow(cache) for cache in both.caches]
    for at in (5, 6):
        both.step(IDS[:, at : at + 1])
        both.step(IDS[:, at + 20 : at + 21], copies)
        both.same(both.caches)


def test_cropping_selecting_and_repeating():
    both = Both(llama())
    both.step(IDS[:, :9].expand(2, -1))
    keys = both.caches[1].layers[0].keys
    before = keys.clone()
    for change in (
        lambda cache: cache.crop(-3),
        lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([0, 3])),
    ):
        for cache in both.caches:
            change(cache)
        batch = both.caches[0].layers[0].keys.shape[0]
        for at in (10, 11):
            both.step(IDS[:, at : at + 1].expand(batch, -1))
    assert torch.equal(keys, before)
    both.check_stock_calls()


def test_a_cache_that_is_reset(both):
    both.step(IDS[:, :5])
    for cache in both.caches:
        cache.reset()
    both.step(IDS[:, :7])


def test_a_cache_of_another_batch_is_refused():
    both = Both(llama())
    both.step(IDS[:, :5])
    for model, cache in zip(both.models, both.caches, strict=True):
        with torch.inference_mode(), pytest.raises((RuntimeError, ValueError)):
            model(IDS[:, :1].expand(3, -1), past_key_values=cache)


def test_a_layer_that_a_program_changed_alone():
    both = Both(llama())
    both.step(IDS[:, :5])
    for cache in both.caches:
        cache.layers[1].keys = cache.layers[1].keys * 0.5
    both.step(IDS[:, 5:6])
    both.step(IDS[:, 6:7])


@pytest.mark.parametrize("model", [llama, mistral, gemma])
def test_nothing_keeps_the_memory_of_a_cache_that_is_gone(model):
    both = Both(model())
    gc.collect()
    gc.disable()
    try:
        both.step(IDS[:, :9])
        both.step(IDS[:, 9:10])
        memory = weakref.ref(place_of(both.caches[1].layers[0]).memory)
        both.caches.clear()
        assert memory() is None
    finally:
        gc.enable()


def test_a_pickle_has_what_the_cache_shows(both):
    both.step(IDS[:, :9])
    stock, fast = (len(pickle.dumps(cache)) for cache in both.caches)
    assert fast < 1.5 * stock

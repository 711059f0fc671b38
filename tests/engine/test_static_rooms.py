"""transformers' static cache is filled by the kernels, and holds what stock would put there."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

import hfaccel
from hfaccel.engine.kernels import kernels_problem

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
)
IDS = torch.randint(1, 100, (2, 24), generator=torch.Generator().manual_seed(0))
ROOM = 20


@pytest.fixture
def models():
    torch.manual_seed(0)
    stock = LlamaForCausalLM(LlamaConfig(vocab_size=100, **SIZES)).eval()
    return stock, hfaccel.optimize(copy.deepcopy(stock), backend="torch")


def caches(models):
    return [StaticCache(config=model.config, max_cache_len=ROOM) for model in models]


def step(models, caches, ids, mask=None):
    with torch.inference_mode():
        expected, got = (
            model(ids, attention_mask=mask, past_key_values=cache).logits
            for model, cache in zip(models, caches, strict=True)
        )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    for stock, fast in zip(*(cache.layers for cache in caches), strict=True):
        torch.testing.assert_close(fast.keys, stock.keys, rtol=0, atol=1e-5)
        torch.testing.assert_close(fast.values, stock.values, rtol=0, atol=1e-5)
        assert fast.cumulative_length == stock.cumulative_length


def stock_calls(models):
    return dict(hfaccel.report(models[1]).stock_calls)


def test_filled_to_the_last_place_and_used_again(models):
    used = caches(models)
    for _ in range(2):
        memory = [layer.keys.data_ptr() for layer in used[1].layers if layer.is_initialized]
        for first, last in ((0, 9), (9, 10), (10, 14), (14, ROOM)):
            step(models, used, IDS[:, first:last])
        assert not memory or memory == [layer.keys.data_ptr() for layer in used[1].layers]
        for cache in used:
            with torch.inference_mode():
                cache.reset()
    assert not stock_calls(models)


def test_padding_before_the_texts(models):
    used, mask = caches(models), torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    step(models, used, IDS[:, :11], mask[:, :11])
    step(models, used, IDS[:, 11:12], mask)
    assert not stock_calls(models)


def test_a_full_cache_is_refused_as_by_stock(models):
    used = caches(models)
    step(models, used, IDS[:, :ROOM])
    errors = []
    for model, cache in zip(models, used, strict=True):
        with pytest.raises((IndexError, RuntimeError)) as error, torch.inference_mode():
            model(IDS[:, :2], past_key_values=cache)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_a_mask_that_shows_empty_places(models):
    used = caches(models)
    step(models, used, IDS[:, :5], torch.ones(2, 1, 5, ROOM, dtype=torch.bool))
    assert any("no token fills" in reason for reason in stock_calls(models))


def test_memory_that_a_program_makes(models):
    used = caches(models)
    for cache in used:
        cache.early_initialization(2, 2, 16, torch.float32, torch.device("cpu"))
    step(models, used, IDS[:, :5])
    assert not stock_calls(models)


def test_numbers_that_the_kernels_do_not_take(models):
    """Neither does stock's attention."""
    fast = hfaccel.optimize(models[0], dtype=torch.bfloat16, backend="torch")
    cache = StaticCache(config=fast.config, max_cache_len=ROOM)
    cache.early_initialization(2, 2, 16, torch.float16, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="dtype"), torch.inference_mode():
        fast(IDS[:, :5], past_key_values=cache)
    assert any("float16" in reason for reason in hfaccel.report(fast).stock_calls)

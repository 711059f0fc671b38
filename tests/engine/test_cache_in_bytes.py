"""`kv_cache="int8"`: the results are those of a stock model whose cache rounds keys and values to 8 bits."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import (
    DynamicCache,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    StaticCache,
)

import hfaccel
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers import rooms
from hfaccel.engine.layers.cache_in_bytes import FACTOR, narrowed, widened
from hfaccel.engine.layers.roomed import held, place_of
from hfaccel.errors import ModelError, UsageError

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = dict(
    hidden_size=80, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=100
)
IDS = torch.randint(1, 100, (2, 40), generator=torch.Generator().manual_seed(0))


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **SIZES)).eval()


def mistral():
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=6, **SIZES)).eval()


def gpt_oss():
    torch.manual_seed(0)
    more = dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=6, head_dim=20)
    model = GptOssForCausalLM(GptOssConfig(num_key_value_heads=2, **more, **SIZES)).eval()
    for layer in model.model.layers:
        layer.self_attn.sinks.data.normal_()
    return model


class Rounding(DynamicCache):
    def update(self, key_states, value_states, *args, **kwargs):
        rounded = (widened(narrowed(each), each.dtype) for each in (key_states, value_states))
        return super().update(*rounded, *args, **kwargs)


class Both:
    """A stock model with a cache that rounds, and an optimized one with an ordinary cache."""

    def __init__(self, model):
        self.models = model, hfaccel.optimize(copy.deepcopy(model), backend="torch", kv_cache="int8")
        self.caches = [kind(config=model.config) for kind in (Rounding, DynamicCache)]

    def step(self, ids, caches=None):
        with torch.inference_mode():
            expected, got = (
                model(ids, past_key_values=cache, use_cache=True).logits
                for model, cache in zip(self.models, caches or self.caches, strict=True)
            )
        # a number that lies between two steps of 8 bits may be rounded to either
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)

    def change(self, how):
        for cache in self.caches:
            how(cache)


@pytest.fixture(params=[llama, mistral, gpt_oss])
def both(request):
    return Both(request.param())


def is_in_bytes(layer):
    return place_of(layer) is not None and held(layer)[0].dtype is torch.int8


def in_bytes(cache):
    return all(map(is_in_bytes, cache.layers))


def test_a_row_is_rounded_to_steps_of_its_own():
    numbers = torch.randn(5, 7, 30) * torch.logspace(-4, 4, 7)[:, None]
    numbers[0, 0] = 0
    rows = narrowed(numbers)
    assert rows.dtype is torch.int8
    assert rows.shape == (5, 7, 30 + FACTOR)
    got = widened(rows, torch.float32)
    assert ((got - numbers).abs() <= numbers.abs().amax(-1, keepdim=True) / 253).all()
    torch.testing.assert_close(narrowed(got), rows, rtol=0, atol=0)


def test_prompts_and_tokens(both, monkeypatch):
    monkeypatch.setattr(rooms, "LEAST", 4)  # so that memory is soon full
    for first, last in ((0, 9), (9, 10), (10, 11), (11, 15), (15, 16), (16, 40)):
        both.step(IDS[:, first:last])
    assert in_bytes(both.caches[1])
    assert not hfaccel.report(both.models[1]).stock_calls


def test_a_token_takes_a_quarter_of_its_floats(both):
    both.step(IDS)
    memory = held(both.caches[1].layers[0])[0]
    assert memory.shape[-1] * memory.element_size() == 20 + FACTOR


def test_programs_read_floats(both):
    both.step(IDS[:, :5])
    for stock, fast in zip(*(cache.layers for cache in both.caches), strict=True):
        torch.testing.assert_close(fast.keys, stock.keys, rtol=0, atol=1e-2)
        torch.testing.assert_close(fast.values, stock.values, rtol=0, atol=1e-2)
    assert both.caches[0].get_seq_length() == both.caches[1].get_seq_length() == 5


CHANGES = {
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
    "repeat": lambda cache: (cache.batch_repeat_interleave(2), cache.batch_select_indices([0, 3])),
    "crop": lambda cache: cache.crop(-2),
    "reset": lambda cache: cache.reset(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_between_steps(change):
    both = Both(llama())
    both.step(IDS[:, :9])
    both.change(CHANGES[change])
    both.step(IDS[:, 9:12])
    both.step(IDS[:, 12:13])
    assert in_bytes(both.caches[1])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_grow_apart(both, copied):
    both.step(IDS[:, :9])
    shallow = copied is copy.copy
    if shallow:  # of the layers, which hold what they held
        other = copy.copy(both.caches[1])
        other.layers = [copy.copy(layer) for layer in both.caches[1].layers]
    else:
        other = copied(both.caches[1])
    before = copy.deepcopy(both.caches[0])
    both.step(IDS[:, 9:12])
    both.step(IDS[:, 20:23], (before, other))
    both.step(IDS[:, 12:13])


def test_the_model_own_layers_go_on_with_floats(both):
    both.step(IDS[:, :9])
    handle = both.models[1].model.layers[1].self_attn.register_forward_hook(lambda *args: None)
    both.step(IDS[:, 9:11])
    assert not is_in_bytes(both.caches[1].layers[1])
    handle.remove()
    both.step(IDS[:, 11:12])
    assert in_bytes(both.caches[1])


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_own_layers_find_numbers_of_their_type(kind, dtype):
    """In whatever numbers the kernels keep them."""
    settings = {"quantization": "int8-weight-only", **({"kv_cache": "int8"} if kind is DynamicCache else {})}
    fast = hfaccel.optimize(llama().to(dtype), backend="torch", **settings)
    cache = kind(config=fast.config, **({"max_cache_len": 20} if kind is StaticCache else {}))
    with torch.inference_mode():
        fast(IDS[:, :9], past_key_values=cache)
        handle = fast.model.layers[1].self_attn.register_forward_hook(lambda *args: None)
        fast(IDS[:, 9:11], past_key_values=cache)
        handle.remove()
        fast(IDS[:, 11:12], past_key_values=cache)
    assert {layer.keys.dtype for layer in cache.layers} == {dtype}


def test_beams():
    model = llama()
    fast = hfaccel.optimize(copy.deepcopy(model), backend="torch", kv_cache="int8")
    settings = dict(num_beams=3, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    expected, got = (
        each.generate(IDS[:, :9], past_key_values=kind(config=model.config), **settings)
        for each, kind in ((model, Rounding), (fast, DynamicCache))
    )
    assert torch.equal(got, expected)


def test_saved_and_loaded(tmp_path):
    model = hfaccel.optimize(llama(), backend="torch", kv_cache="int8")
    assert "8 bits" in str(hfaccel.report(model))
    hfaccel.save(model, tmp_path / "model")
    loaded = hfaccel.load(tmp_path / "model")
    with torch.inference_mode():
        results = [each(IDS, use_cache=True) for each in (model, loaded)]
    torch.testing.assert_close(results[1].logits, results[0].logits, rtol=0, atol=1e-6)
    assert in_bytes(results[1].past_key_values)
    hfaccel.restore(loaded)
    with torch.inference_mode():
        assert not in_bytes(loaded(IDS, use_cache=True).past_key_values)


def test_refused():
    with pytest.raises(UsageError, match="kv_cache must be one of auto, int8, but got 'int4'"):
        hfaccel.optimize(llama(), kv_cache="int4")
    model = hfaccel.optimize(llama(), backend="torch")
    with pytest.raises(ModelError, match="optimized with kv_cache='auto' and cannot get 'int8'"):
        hfaccel.optimize(model, kv_cache="int8")

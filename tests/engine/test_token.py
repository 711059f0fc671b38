"""One more token of each text without the model's own forward: when, and with which results."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from conftest import needs_kernels
from torch import nn
from transformers import (
    DynamicCache,
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

import hfaccel
from hfaccel.engine.models.next_token import NextToken
from hfaccel.engine.models.token import NEXT, TokenModel

pytestmark = needs_kernels

SIZES = dict(
    vocab_size=151,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=0,
)
LONG = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
MADE = {
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "Llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "Qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "Gemma": lambda: GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=16)),
    "Mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
}
WITHOUT = {
    "the embeddings of its ids": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, embedding_multiplier=3.0)),
    "through a window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=64)),
    "depend on the length": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, rope_parameters={**LONG, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8})
    ),
}
IDS = torch.randint(3, 151, (2, 9), generator=torch.Generator().manual_seed(0))


def make(name="Llama", made=MADE):
    torch.manual_seed(1)
    model = made[name]().eval()
    with torch.no_grad():
        for each in model.parameters():  # or tokens would be too alike to tell mistakes
            each.copy_(torch.randn_like(each) * (0.2 if each.dim() > 1 else 0.3) + (each.dim() == 1))
    return model


def pair(name="Llama", **settings):
    stock = make(name)
    return stock, hfaccel.optimize(copy.deepcopy(stock), **settings)


@pytest.fixture
def taken(monkeypatch):
    """Whether each call of a NextToken gave a result."""
    calls, own = [], NextToken.__call__

    def watched(self, kwargs):
        result = own(self, kwargs)
        calls.append(result is not None)
        return result

    monkeypatch.setattr(NextToken, "__call__", watched)
    return calls


def generate(model, ids=IDS, new=12, **settings):
    with torch.inference_mode():
        return model.generate(ids, max_new_tokens=new, do_sample=False, **settings)


def logits(model, ids=IDS, cache=None, **more):
    """Of the last token, after the others."""
    cache = DynamicCache() if cache is None else cache
    with torch.inference_mode():
        model(ids[:, :-1], past_key_values=cache, use_cache=True)
        return model(input_ids=ids[:, -1:].contiguous(), past_key_values=cache, use_cache=True, **more).logits


def assert_equal(fast, stock, ids=IDS, **more):
    torch.testing.assert_close(logits(fast, ids, **more), logits(stock, ids, **more), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("count", [1, 2])
def test_tokens_and_scores_are_those_of_stock(name, count, taken):
    stock, fast = pair(name)
    taken.clear()
    asked = dict(output_logits=True, return_dict_in_generate=True)
    expected, got = (generate(model, IDS[:count], **asked) for model in (stock, fast))
    assert torch.equal(got.sequences, expected.sequences)
    for ours, own in zip(got.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)
    assert taken == [True] * 11
    for ours, own in zip(got.past_key_values.layers, expected.past_key_values.layers, strict=True):
        torch.testing.assert_close(ours.keys, own.keys, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("asked", [{}, {"dtype": torch.bfloat16}, {"quantization": "int8-weight-only"}])
def test_logits_have_the_type_that_the_model_gives_them(asked, taken):
    _, fast = pair(**asked)
    with torch.inference_mode():
        cache = DynamicCache()
        first = fast(IDS, past_key_values=cache, use_cache=True)
        second = fast(input_ids=IDS[:, :1].contiguous(), past_key_values=cache, use_cache=True)
    assert taken[-1] and type(second) is type(first) and list(second) == list(first)
    assert second.logits.dtype is first.logits.dtype and second.past_key_values is cache


@pytest.mark.parametrize(
    "settings",
    [
        dict(num_beams=3),
        dict(prompt_lookup_num_tokens=2),
        dict(cache_implementation="static"),
        dict(use_cache=False),
    ],
    ids=str,
)
def test_other_ways_of_generating(settings):
    stock, fast = pair()
    ids = IDS[:1] if "prompt_lookup_num_tokens" in settings else IDS
    assert torch.equal(generate(fast, ids, **settings), generate(stock, ids, **settings))


def test_a_padded_text_and_its_mask_run_the_models_own_forward(taken):
    stock, fast = pair()
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    taken.clear()
    expected, got = (generate(model, attention_mask=mask) for model in (stock, fast))
    assert torch.equal(got, expected) and taken and not any(taken)


@pytest.mark.parametrize(
    "more",
    [
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"labels": IDS[:, -1:]},
        {"logits_to_keep": 2},
        {"position_ids": torch.tensor([[3], [4]])},
        {"attention_mask": torch.ones(2, 1, 1, 9, dtype=torch.bool)},
        {"attention_mask": torch.ones(2, 9)},
        {"return_dict": False},
    ],
    ids=str,
)
def test_what_a_call_asks_for_besides_runs_the_models_own_forward(more, taken):
    _, fast = pair()
    taken.clear()
    with torch.inference_mode():
        cache = DynamicCache()
        fast(IDS[:, :-1], past_key_values=cache, use_cache=True)
        given = {"input_ids": IDS[:, -1:].contiguous(), "past_key_values": cache, "use_cache": True, **more}
        fast(**given)
    assert taken == [False]


def test_positions_beyond_the_first_table(taken):
    stock, fast = pair("Qwen3")
    ids = torch.randint(3, 151, (1, 700), generator=torch.Generator().manual_seed(2))
    taken.clear()
    assert_equal(fast, stock, ids)
    assert_equal(fast, stock, IDS)
    assert taken == [True, True]


def test_a_cache_that_was_cropped(taken):
    stock, fast = pair()
    found = []
    for model in (stock, fast):
        cache = DynamicCache()
        logits(model, cache=cache)
        cache.crop(-5)
        with torch.inference_mode():
            result = model(input_ids=IDS[:, 4:5].contiguous(), past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == 5
        found.append(result.logits)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert taken[-1]


CHANGES = {
    "norm": lambda model: model.model.norm.weight.data.mul_(1.5),
    "another norm": lambda model: setattr(model.model, "norm", copy.deepcopy(model.model.norm)),
    "epsilon": lambda model: setattr(model.model.norm, "variance_epsilon", 0.5),
    "head": lambda model: model.lm_head.weight.data.mul_(1.5),
    "another head": lambda model: setattr(
        model, "lm_head", nn.Linear(64, 151, bias=False).requires_grad_(False).eval()
    ),
    "an ordinary head": lambda model: setattr(
        model.lm_head, "weight", nn.Parameter(model.lm_head.weight.detach() * 2)
    ),
    "other weights": lambda model: model.load_state_dict(
        {name: value * 1.1 for name, value in model.state_dict().items()}, assign=True
    ),
    "doubles": lambda model: model.double(),
    "rotary": lambda model: model.model.rotary_emb.inv_freq.mul_(0.5),
    "scaling": lambda model: setattr(model.model.rotary_emb, "attention_scaling", 2.0),
    "embedding": lambda model: model.model.embed_tokens.weight.data.mul_(1.5),
    "layer": lambda model: model.model.layers[0].mlp.up_proj.weight.data.mul_(1.5),
    "one layer less": lambda model: model.model.layers.__delitem__(1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(change):
    stock, fast = pair()
    assert_equal(fast, stock)
    for model in (stock, fast):
        torch.manual_seed(3)
        with torch.no_grad():
            CHANGES[change](model)
    if change == "one layer less":
        stock.config.num_hidden_layers = fast.config.num_hidden_layers = 1
    assert_equal(fast, stock)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_that_is_cast_gives_numbers_of_that_type(dtype):
    _, fast = pair()
    logits(fast)
    fast.to(dtype)
    assert logits(fast).dtype is dtype


HOOKED = ["", "model", "model.norm", "model.embed_tokens", "model.layers.1", "model.layers.0.mlp", "lm_head"]


@pytest.mark.parametrize("path", HOOKED)
def test_hooks_see_every_token(path):
    _, fast = pair()
    seen = []
    handle = fast.get_submodule(path).register_forward_hook(lambda *_: seen.append(1))
    logits(fast)
    assert len(seen) == 2
    handle.remove()
    logits(fast)
    assert len(seen) == 2


def test_another_config_is_seen():
    _, fast = pair()
    logits(fast)
    fast.config = copy.deepcopy(fast.config)
    fast.config.return_dict = False
    cache = DynamicCache()
    with torch.inference_mode():
        fast(IDS[:, :-1], past_key_values=cache, use_cache=True)
        given = {"input_ids": IDS[:, -1:].contiguous(), "past_key_values": cache, "use_cache": True}
        assert isinstance(fast(**given), tuple)


def test_a_forward_of_the_programs_own_runs():
    _, fast = pair()
    calls = []
    own = fast.model.norm.forward
    fast.model.norm.forward = lambda hidden: calls.append(1) or own(hidden)
    logits(fast)
    assert len(calls) == 2


def test_training_and_gradients_run_stock(taken):
    _, fast = pair()
    taken.clear()
    cache = DynamicCache()
    fast(IDS[:, :-1], past_key_values=cache, use_cache=True)
    fast(input_ids=IDS[:, -1:], past_key_values=cache, use_cache=True).logits.sum().backward()
    assert fast.model.norm.weight.grad is not None and not any(taken)
    fast.train()
    assert NEXT not in vars(fast)


@pytest.mark.parametrize("through", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_find_their_own_way(through, taken):
    stock, fast = pair()
    other = through(fast)
    taken.clear()
    assert torch.equal(generate(other), generate(stock))
    assert isinstance(other, TokenModel) and taken.count(True) >= 9
    with torch.no_grad():
        other.model.norm.weight.mul_(2)
    assert_equal(fast, stock)


def test_a_saved_model_finds_its_way(tmp_path, taken):
    stock, fast = pair()
    with pytest.warns(RuntimeWarning, match="was not loaded from a checkpoint"):
        hfaccel.save(fast, tmp_path)
    loaded = hfaccel.load(tmp_path)
    taken.clear()
    assert torch.equal(generate(loaded), generate(stock)) and taken.count(True) >= 9


def test_restored_it_is_stock():
    stock, fast = pair()
    restored = hfaccel.restore(fast)
    assert type(restored) is type(stock) and NEXT not in vars(restored)
    assert torch.equal(generate(restored), generate(stock))


@pytest.mark.parametrize("reason", WITHOUT)
def test_models_without_a_way_say_why(reason):
    stock = make(reason, WITHOUT)
    fast = hfaccel.optimize(copy.deepcopy(stock))
    assert not isinstance(fast, TokenModel)
    assert "every token runs its own forward" in str(hfaccel.report(fast).to_dict())
    assert reason in str(hfaccel.report(fast).to_dict())
    assert torch.equal(generate(fast), generate(stock))


def test_nothing_keeps_the_model_alive():
    _, fast = pair()
    generate(fast)
    gone = weakref.ref(fast)
    gc.collect()
    gc.disable()
    try:
        del fast
        assert gone() is None
    finally:
        gc.enable()


def test_static_caches_run_the_models_own_forward(taken):
    stock, fast = pair()
    taken.clear()
    caches = (StaticCache(config=stock.config, max_cache_len=32) for _ in range(2))
    found = [logits(model, cache=cache) for model, cache in zip((stock, fast), caches, strict=True)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert taken == [False]

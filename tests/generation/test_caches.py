"""Caches: those that generate() makes, those that a program passes, and what it does to them in between."""

from __future__ import annotations

import copy

import pytest
import torch
from models import CAUSAL, DECODERS, ENCODED, NAMES, NEW, NO_END, WINDOW, optimized, prompt, stock
from same import assert_both, assert_equal, assert_same, generate, outcome
from transformers import DynamicCache, StaticCache
from transformers.utils import is_hqq_available, is_optimum_quanto_available

pytestmark = pytest.mark.usefixtures("one_thread")
QUANTIZED = {
    "fp8": True,
    "hqq": is_hqq_available(),
    "quanto": is_optimum_quanto_available(),
}


def ids(name, count=2, length=9):
    """Without padding."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(5, stock(name).config.vocab_size, (count, length), generator=generator)


def step(model, tokens, cache):
    with torch.no_grad():
        return model(input_ids=tokens, past_key_values=cache, use_cache=True)


def loop(model, tokens, cache, new=6):
    """The logits of every step of a program's own greedy loop, and the cache."""
    seen = []
    for _ in range(new):
        result = step(model, tokens, cache)
        cache = result.past_key_values
        seen.append(result.logits)
        tokens = result.logits[:, -1:].argmax(-1)
    return seen, cache


def growing(model):
    return DynamicCache(config=model.config)


@pytest.mark.parametrize("name", NAMES)
def test_static(name):
    """Same tokens, or the same refusal."""
    use = lambda model: outcome(lambda each: generate(each, name, cache_implementation="static"), model)  # noqa: E731
    assert_both(name, use)


@pytest.mark.parametrize("name", [*DECODERS, *ENCODED])
@pytest.mark.parametrize("kind", ["dynamic", "offloaded", "offloaded_static"])
def test_kinds_that_generate_makes(name, kind):
    """Offloading refuses where there is nothing to offload from."""
    assert_both(
        name, lambda model: outcome(lambda each: generate(each, name, cache_implementation=kind), model)
    )


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Qwen2"])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized(name, kind):
    if not QUANTIZED[kind]:
        pytest.skip(f"{kind} is not installed")
    settings = {"backend": kind, **({} if kind == "fp8" else {"nbits": 4, "residual_length": 4})}
    assert_same(name, cache_implementation="quantized", cache_config=settings)


@pytest.mark.parametrize("name", list(CAUSAL))
def test_a_loop_of_the_program(name):
    """No cache passed at first; what the model returns holds what stock's holds."""
    assert_both(name, lambda model: loop(model, ids(name), None))
    with torch.inference_mode():
        assert_both(name, lambda model: loop(model, ids(name), None, new=3))


@pytest.mark.parametrize("name", DECODERS)
def test_a_cache_of_the_program(name):
    assert_both(name, lambda model: loop(model, ids(name), growing(model)))
    assert_both(name, lambda model: loop(model, ids(name), DynamicCache()))


@pytest.mark.parametrize("name", DECODERS)
def test_continued_in_a_second_call(name):
    """As in a conversation: the second prompt is all that was said, and more."""

    def talk(model):
        cache = growing(model)
        settings = dict(past_key_values=cache, attention_mask=None, eos_token_id=NO_END)
        said = generate(model, name, input_ids=ids(name, 1), **settings)
        more = torch.cat([said, ids(name, 1, 5)], 1)
        return said, generate(model, name, input_ids=more, **settings), cache

    assert_both(name, talk)


@pytest.mark.parametrize("name", DECODERS)
def test_one_prefix_for_many_texts(name):
    """A copy of the cache for each."""

    def use(model):
        prefix = step(model, ids(name, 1), growing(model)).past_key_values
        texts = [torch.cat([ids(name, 1), ids(name, 1, length)], 1) for length in (2, 7)]
        settings = dict(attention_mask=None, eos_token_id=NO_END)
        return [
            generate(model, name, input_ids=text, past_key_values=copy.deepcopy(prefix), **settings)
            for text in texts
        ]

    assert_both(name, use)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("length", [1, 3, 20])
def test_a_prompt_in_pieces(name, length):
    """The whole window, a part of one, several."""

    def use(model):
        cache = growing(model)
        pieces = ids(name, 2, 26).split(length, 1)
        return [step(model, piece, cache).logits for piece in pieces], cache

    assert_both(name, use)


@pytest.mark.parametrize("name", DECODERS)
def test_generate_reads_a_prompt_in_pieces(name):
    assert_same(name, prefill_chunk_size=4)


# What programs and decoding methods do to a cache between two steps.
CHANGES = {
    "crop": lambda cache: cache.crop(2),
    "crop to a length": lambda cache: cache.crop(-3),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
    "take one twice": lambda cache: cache.reorder_cache(torch.tensor([1, 1])),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([1])),
    "reset": lambda cache: cache.reset(),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_between_steps(name, change):
    """Where a window cannot be cropped, both refuse."""

    def use(model):
        _, cache = loop(model, ids(name), growing(model), new=4)
        CHANGES[change](cache)
        rows = cache.layers[0].keys.shape[0] if cache.get_seq_length() else 2
        return loop(model, ids(name, 4, 1)[:rows], cache, new=3)

    assert_both(name, lambda model: outcome(use, model))


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_changed_in_place(name):
    """By a program that writes to the tensors of a cache, or puts others there."""

    def use(model):
        _, cache = loop(model, ids(name), growing(model), new=2)
        cache.layers[0].keys[:, :, 3] *= 0.5
        cache.layers[1].values = cache.layers[1].values.flip(0)
        return loop(model, ids(name, 2, 1), cache, new=3)

    assert_both(name, use)


@pytest.mark.parametrize("name", DECODERS)
def test_two_texts_in_turn(name):
    """Each with a cache of its own: neither finds anything of the other."""

    def use(model):
        caches = [growing(model), growing(model)]
        tokens = [ids(name, 2, 9), ids(name, 2, 4)]
        seen = []
        for _ in range(5):
            for number in range(2):
                result = step(model, tokens[number], caches[number])
                seen.append(result.logits[:, -1])
                tokens[number] = result.logits[:, -1:].argmax(-1)
        return seen, caches

    assert_both(name, use)


@pytest.mark.parametrize("name", DECODERS)
def test_a_static_cache_used_again(name):
    def use(model):
        cache = StaticCache(config=model.config, max_cache_len=40)
        seen = []
        for length in (9, 5):
            result = loop(model, ids(name, 2, length), cache)
            seen += result[0]
            cache.reset()
        return seen

    assert_both(name, use)


@pytest.mark.parametrize("name", DECODERS)
def test_from_one_tree_to_the_other(name):
    """A cache that stock filled serves the optimized model, and the other way round."""
    models = (stock(name), optimized(name))
    expected, _ = loop(stock(name), ids(name), None, new=6)
    for first, second in (models, models[::-1]):
        early, cache = loop(first, ids(name), None, new=3)
        late, _ = loop(second, early[-1][:, -1:].argmax(-1), cache, new=3)
        assert_equal([*early, *late], expected)


class Counting(DynamicCache):
    """A program's own class: what it overrides is called."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.updates = []

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.updates.append((layer_idx, tuple(key_states.shape)))
        return super().update(key_states, value_states * 0.9, layer_idx, *args, **kwargs)


@pytest.mark.parametrize("name", DECODERS)
def test_a_class_of_the_program(name):
    def use(model):
        seen, cache = loop(model, ids(name), Counting(config=model.config))
        return seen, cache.updates

    assert_both(name, use)


@pytest.mark.parametrize("name", DECODERS)
def test_what_a_cache_shows(name):
    """Its tensors have stock's shapes, and are a program's to read."""

    def use(model):
        _, cache = loop(model, ids(name), None, new=3)
        shapes = [(tuple(keys.shape), tuple(values.shape)) for keys, values, *_ in cache]
        return len(cache), cache.get_seq_length(), cache.get_max_length(), cache.is_croppable, shapes

    assert_both(name, use)


@pytest.mark.parametrize("name", ENCODED)
def test_with_an_encoder(name):
    """The cache of the encoder's states is of the same values, too; both serve a second call."""

    def use(model):
        settings = dict(attention_mask=None, return_dict_in_generate=True, eos_token_id=NO_END)
        first = generate(model, name, 1, **settings)
        cache = first.past_key_values
        more = step_decoder(model, name, first.sequences[:, -1:], cache)
        cross = cache.cross_attention_cache
        return first.sequences, more, [(layer.keys, layer.values) for layer in cross.layers]

    assert_both(name, use)


def step_decoder(model, name, tokens, cache):
    """With states of the encoder that its cache holds already."""
    given = prompt(name, 1)
    given.pop("attention_mask", None)
    with torch.inference_mode():
        states = model.get_encoder()(**given)
        return model(encoder_outputs=states, decoder_input_ids=tokens, past_key_values=cache).logits


def test_a_window_is_passed():
    """Otherwise the tests above would not show what happens there."""
    assert prompt("Mistral, window")["input_ids"].shape[1] + NEW > 2 * WINDOW

"""What programs do to a model that generates: hooks, adapters, new weights, threads, copies, pipelines."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from conftest import at_once
from letters import letters
from models import DECODERS, ENCODED, optimized, prompt, stock
from same import assert_equal, generate

import hfaccel

pytestmark = pytest.mark.usefixtures("one_thread")
BOTH = [*DECODERS, *ENCODED]
# Ends of names of classes.
HOOKED = ["Attention|SelfAttention", "MLP|DenseActDense|FF", "Norm", "Linear|Conv1D", "Layer|Block"]


def both(name):
    """Two trees of the test's own: stock's and an optimized one."""
    return copy.deepcopy(stock(name)), hfaccel.optimize(copy.deepcopy(stock(name)))


def assert_alike(pair, name, **settings):
    expected = generate(pair[0], name, **settings)
    assert_equal(generate(pair[1], name, **settings), expected)
    return expected


def paths(model, ending):
    """Of every module whose class, as transformers has it, is called so."""
    return [path for path, each in model.named_modules() if re.search(f"{ending}$", type(each).__name__)]


@pytest.mark.parametrize("name", BOTH)
def test_hooks(name):
    """On each kind of part: they are called as often as in stock, and what they return counts."""
    pair = both(name)
    free = assert_alike(pair, name)
    endings = [ending for ending in HOOKED if paths(pair[0], ending)]
    assert len(endings) >= 3
    for ending in endings:
        expected, got = (hooked(model, name, ending) for model in pair)
        assert got[1] == expected[1] > 0
        assert_equal(got[0], expected[0])
    assert_equal(generate(pair[1], name), free)


def hooked(model, name, ending):
    """What is generated while hooks make results smaller, and how often they were called."""
    calls = []

    def hook(module, given, result):
        calls.append(module)
        first, *rest = result if isinstance(result, tuple) else (result,)
        return (first * 0.9, *rest) if rest or isinstance(result, tuple) else first * 0.9

    hooks = [model.get_submodule(path).register_forward_hook(hook) for path in paths(model, ending)]
    result = generate(model, name)
    for each in hooks:
        each.remove()
    return result, len(calls)


@pytest.mark.parametrize("name", BOTH)
def test_hidden_states_and_attentions(name):
    pair = both(name)
    settings = dict(output_hidden_states=True, output_attentions=True, return_dict_in_generate=True)
    for model in pair:
        model.set_attn_implementation("eager")
    assert_alike(pair, name, count=1, attention_mask=None, **settings)


@pytest.mark.parametrize("name", BOTH)
def test_another_attention(name):
    pair = both(name)
    for kind in ("eager", stock(name).config._attn_implementation):
        for model in pair:
            model.set_attn_implementation(kind)
        assert_alike(pair, name)


@pytest.mark.parametrize("name", BOTH)
def test_new_weights(name):
    """Changed in place, then replaced, after a first text was generated."""
    pair = both(name)
    first = assert_alike(pair, name)
    for model in pair:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.8)
    second = assert_alike(pair, name)
    for model in pair:
        model.load_state_dict(stock(name).state_dict())
    assert_equal(assert_alike(pair, name), first)
    assert second.shape != first.shape or not second.equal(first)


@pytest.mark.parametrize("name", DECODERS)
def test_trained_further(name):
    """A step of training in between."""
    pair = both(name)
    assert_alike(pair, name)
    for model in pair:
        model.train()
        given = prompt(name)
        torch.manual_seed(0)
        model(**given, labels=given["input_ids"]).loss.backward()
        torch.optim.SGD(model.parameters(), 0.01).step()
        model.zero_grad()
        model.eval()
    assert_alike(pair, name)


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "T5"])
def test_adapters(name):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    task = "SEQ_2_SEQ_LM" if name == "T5" else "CAUSAL_LM"
    pair = []
    for model in both(name):
        torch.manual_seed(0)
        settings = peft.LoraConfig(r=4, init_lora_weights=False, task_type=task)
        pair.append(peft.get_peft_model(model, settings).eval())
    adapted = assert_alike(pair, name)
    for model in pair:
        with model.disable_adapter():
            assert_equal(generate(model, name), generate(stock(name), name))
    merged = [model.merge_and_unload() for model in pair]
    assert_equal(assert_alike(merged, name), adapted)


@pytest.mark.parametrize("name", BOTH)
def test_copies(name):
    expected = generate(stock(name), name)
    fast = both(name)[1]
    generate(fast, name)
    for made in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert_equal(generate(made, name), expected)


@pytest.mark.parametrize("name", BOTH)
def test_saved(name, tmp_path):
    expected = generate(stock(name), name)
    optimized(name).save_pretrained(tmp_path)
    made = type(stock(name)).from_pretrained(tmp_path).eval()
    assert_equal(generate(made, name), expected)
    assert_equal(generate(hfaccel.optimize(made), name), expected)


@pytest.mark.parametrize("name", BOTH)
def test_threads(name):
    """One model, several texts at once."""
    counts = (1, 2, 3, 1)
    expected = [generate(stock(name), name, count) for count in counts]
    got = at_once(len(counts), lambda number: generate(optimized(name), name, counts[number]))
    assert_equal(got, expected)


@pytest.mark.parametrize("name", DECODERS)
def test_one_more_token_in_the_vocabulary(name):
    pair = both(name)
    assert_alike(pair, name)
    for model in pair:
        torch.manual_seed(0)
        model.resize_token_embeddings(stock(name).config.vocab_size + 13, mean_resizing=False)
    assert_alike(pair, name)


@pytest.mark.parametrize("name", DECODERS)
def test_chat(name):
    """A pipeline with a chat template; a list of chats, in batches."""
    from transformers import pipeline

    chats = [
        [{"role": "user", "content": "How are you?"}],
        [
            {"role": "user", "content": "1+1=?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "Why?"},
        ],
    ]
    settings = dict(max_new_tokens=8, do_sample=False)
    stocks = pipeline("text-generation", stock(name), tokenizer=letters(), device="cpu")
    fast = hfaccel.optimize(
        pipeline("text-generation", copy.deepcopy(stock(name)), tokenizer=letters(), device="cpu")
    )
    assert fast(chats[0], **settings) == stocks(chats[0], **settings)
    assert fast(chats, batch_size=2, **settings) == stocks(chats, batch_size=2, **settings)
    assert fast("once", num_return_sequences=2, num_beams=2, **settings) == stocks(
        "once", num_return_sequences=2, num_beams=2, **settings
    )


@pytest.mark.parametrize("name", DECODERS)
def test_a_template_and_a_tokenizer(name):
    chat = [{"role": "user", "content": "How are you?"}]
    given = letters().apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    expected = generate(stock(name), name, **given)
    got = generate(optimized(name), name, **given)
    assert letters().batch_decode(got) == letters().batch_decode(expected)

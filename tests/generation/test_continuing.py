"""hfaccel.pipeline("text-generation") over lists: what the stock pipeline makes of each prompt."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from letters import letters
from models import optimized, stock

import hfaccel
from hfaccel.engine.kernels import kernels_problem
from hfaccel.generation.scheduler import Scheduler
from hfaccel.pipelines.wrap import wrap

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["hello there", "a", "what is this?", "hello there, you", "xyz" * 9]
CHATS = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "be"}, {"role": "user", "content": "who"}],
    [{"role": "user", "content": "so"}, {"role": "assistant", "content": "it be"}],
]
GREEDY = dict(do_sample=False, max_new_tokens=9)


def pipe(model):
    made = transformers.pipeline("text-generation", model, tokenizer=copy.deepcopy(letters()))
    made.model.generation_config.eos_token_id = 2
    return made


@pytest.fixture
def both(monkeypatch):
    """The stock pipeline, hfaccel's, and how many steps that took."""
    steps, step = [], Scheduler.step
    monkeypatch.setattr(Scheduler, "step", lambda self: steps.append(1) or step(self))
    return pipe(copy.deepcopy(stock("Llama"))), wrap(pipe(copy.deepcopy(optimized("Llama")))), steps


def same(one, other):
    """Results, in which chats are objects."""
    assert repr(one) == repr(other)


@pytest.mark.parametrize("inputs", [TEXTS, CHATS])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"return_full_text": False},
        {"return_tensors": True},
        {"max_new_tokens": 1},
        {"eos_token_id": list(range(3, 60))},
        {"eos_token_id": None},
        {"repetition_penalty": 1.5, "min_new_tokens": 4},
        {"batch_size": 2, "temperature": 0.5},
        {"generation_config": transformers.GenerationConfig(max_new_tokens=4, do_sample=False)},
        {"max_new_tokens": None, "max_length": 40},
        {"clean_up_tokenization_spaces": True, "skip_special_tokens": False},
    ],
)
def test_results_are_those_of_stock(both, inputs, settings):
    plain, fast, steps = both
    asked = {**({} if "generation_config" in settings else GREEDY), **settings}
    asked = {name: value for name, value in asked.items() if name == "eos_token_id" or value is not None}
    expected = plain(inputs, **{**asked, "batch_size": 1})
    same(fast(inputs, **asked), expected)
    assert steps
    assert hfaccel.report(fast).stock_calls == {}


@pytest.mark.parametrize(
    ("inputs", "settings", "reason"),
    [
        (TEXTS, {"do_sample": True, "top_k": 1}, "do_sample=True: tokens are drawn at random"),
        (TEXTS, {"num_beams": 2}, "num_beams was asked for"),
        (TEXTS, {"stop_sequence": "q"}, "stop_strings, tokenizer was asked for"),
        (TEXTS, {"no_repeat_ngram_size": 2}, "no_repeat_ngram_size was asked for"),
        (TEXTS, {"num_return_sequences": 2, "num_beams": 2}, "num_beams, num_return_sequences was asked for"),
        (["", "a"], {}, "the prompt is empty"),
        (TEXTS[:1], {}, "one prompt, or a stream of them"),
    ],
)
def test_everything_else_runs_as_before(both, inputs, settings, reason):
    plain, fast, steps = both
    asked = {**GREEDY, **settings}
    same(fast(inputs, **asked), plain(inputs, **asked))
    assert not steps
    assert hfaccel.report(fast).stock_calls == {reason: 1}


def test_one_prompt_and_streams(both):
    plain, fast, steps = both
    same(fast("hello", **GREEDY), plain("hello", **GREEDY))
    same([*fast((text for text in TEXTS), **GREEDY)], plain(TEXTS, **GREEDY))
    assert not steps


def test_prompts_share_calls(both):
    _, fast, steps = both
    fast(TEXTS, **GREEDY)
    assert len(steps) == GREEDY["max_new_tokens"]


def test_a_single_prompt_that_cannot_be_continued_together(both):
    """An empty one runs alone, in its place."""
    plain, fast, _ = both
    inputs = ["hello", "", "there"]
    same(fast(inputs, **GREEDY), plain(inputs, **GREEDY))


def test_an_error_in_its_place(both):
    """As in the stock loop, the first error ends the call; later calls are not affected."""
    _, fast, _ = both
    with pytest.raises((TypeError, ValueError)):
        fast(["hello", 3, "there"], **GREEDY)
    assert len(fast(TEXTS, **GREEDY)) == 5


def test_progress(both, capsys):
    _, fast, _ = both
    fast(TEXTS, **GREEDY, progress=True)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "reason"), [("MPT", "takes no position_ids"), ("DeepSeek-V3", "own forward")]
)
def test_models_that_compute_one_after_another(name, reason):
    fast = wrap(pipe(copy.deepcopy(optimized(name))))
    same(fast(TEXTS, **GREEDY), pipe(stock(name))(TEXTS, **GREEDY))
    assert any(reason in each for each in hfaccel.report(fast).stock_calls)


def test_a_layer_that_changes_between_two_calls(both):
    """The scheduler leaves the kernels, and the results stay."""
    plain, fast, _ = both
    expected = plain(TEXTS, **GREEDY)
    same(fast(TEXTS, **GREEDY), expected)
    fast.model.model.layers[0].self_attn.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="hook"):
        same(fast(TEXTS, **GREEDY), expected)


def test_the_public_function():
    fast = hfaccel.pipeline("text-generation", copy.deepcopy(stock("GPT-2")), tokenizer=letters())
    with torch.inference_mode():
        same(fast(TEXTS, **GREEDY), pipe(stock("GPT-2"))(TEXTS, **GREEDY))
    assert any("share calls of the model" in each.reason for each in hfaccel.report(fast).outcomes)


def test_the_mode_of_the_model_is_asked_at_each_call(both):
    """Not once: a model may be trained between two calls."""
    expected, fast, steps = both
    fast.model.train()
    fast(TEXTS, **GREEDY)
    assert not steps
    fast.model.eval()
    same(fast(TEXTS, **GREEDY), expected(TEXTS, **GREEDY))
    assert steps
    steps.clear()
    fast.model.train()
    fast(TEXTS, **GREEDY)
    assert not steps

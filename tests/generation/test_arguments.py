"""Arguments of generate(): search, sampling, processors, criteria, drafts, streamers."""

from __future__ import annotations

import copy
from threading import Thread

import pytest
import torch
from letters import letters
from models import CAUSAL, DECODERS, ENCODED, NEW, NO_END, VOCABULARY, optimized, prompt, stock
from same import assert_both, assert_same, generate
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)

import hfaccel

pytestmark = pytest.mark.usefixtures("one_thread")
DETAILS = dict(return_dict_in_generate=True, output_logits=True, output_scores=True)
DRAFTED = ["Llama", "Qwen3", "Gemma", "GPT-2", "OPT"]

SETTINGS = {
    "repetition_penalty": dict(repetition_penalty=1.3),
    "no_repeat_ngram_size": dict(no_repeat_ngram_size=2),
    "bad_words_ids": dict(bad_words_ids=[[7], [8, 9], [20]]),
    "min_new_tokens": dict(min_new_tokens=10, eos_token_id=list(range(3, 100))),
    "suppress_tokens": dict(suppress_tokens=list(range(50, 90))),
    "sequence_bias": dict(sequence_bias=[[[11], 2.0], [[12], -3.0]]),
    "forced_eos_token_id": dict(forced_eos_token_id=2),
    "exponential_decay": dict(exponential_decay_length_penalty=(4, 1.5), eos_token_id=17),
    "renormalize_logits": dict(renormalize_logits=True, num_beams=2),
    "remove_invalid_values": dict(remove_invalid_values=True),
    "top_k": dict(do_sample=True, top_k=5),
    "min_p": dict(do_sample=True, top_k=0, min_p=0.05),
    "typical_p": dict(do_sample=True, top_k=0, typical_p=0.8),
    "epsilon and eta": dict(do_sample=True, top_k=0, epsilon_cutoff=1e-3, eta_cutoff=1e-3),
    "beams that sample": dict(do_sample=True, num_beams=3, top_k=20),
    "beams, early": dict(
        num_beams=4, early_stopping=True, length_penalty=0.5, eos_token_id=list(range(3, 30))
    ),
    "beams, never": dict(num_beams=4, early_stopping="never", length_penalty=2.0, num_return_sequences=2),
    "several samples": dict(do_sample=True, num_return_sequences=3, top_p=0.9),
    "several ends": dict(eos_token_id=list(range(3, 60))),
    "max_time": dict(max_time=600.0),
    "watermark": dict(watermarking_config=dict(bias=2.0, seeding_scheme="lefthash", context_width=1)),
    "an own configuration": dict(
        generation_config=GenerationConfig(max_new_tokens=7, do_sample=False, pad_token_id=0, eos_token_id=2),
        max_new_tokens=None,
        do_sample=None,
    ),
    "details": dict(**DETAILS, num_beams=2),
    "one token": dict(max_new_tokens=1),
}


@pytest.mark.parametrize("name", [*DECODERS, "T5", "BART"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_setting(name, setting):
    assert_same(name, **SETTINGS[setting])


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("setting", [dict(guidance_scale=1.5), dict(max_length=20, max_new_tokens=None)])
def test_setting_of_decoders(name, setting):
    """Guidance computes the text without its prompt in between, with a cache of its own."""
    assert_same(name, **setting)


@pytest.mark.parametrize("name", list(CAUSAL))
def test_prompt_lookup(name):
    """The prompt repeats itself, so that drafts are found; some are rejected and cropped off the cache."""
    text = prompt(name, 1)["input_ids"].repeat(1, 2)
    settings = dict(input_ids=text, attention_mask=None, eos_token_id=NO_END)
    assert_same(name, 1, prompt_lookup_num_tokens=3, **settings)


@pytest.mark.parametrize("name", DRAFTED)
@pytest.mark.parametrize("drafts", ["stock", "optimized", "itself"])
def test_assisted(name, drafts):
    """By a smaller model of the same kind; by itself, so that every draft is accepted."""

    def use(model):
        draft = model if drafts == "itself" else make_draft(name, drafts == "optimized")
        settings = dict(assistant_model=draft, attention_mask=None, eos_token_id=NO_END)
        return [
            generate(model, name, 1, **settings),
            generate(model, name, 1, **settings, do_sample=True, temperature=0.7),
        ]

    assert_both(name, use)


def make_draft(name, fast):
    """The target with slightly other weights: some of its tokens are accepted."""
    draft = copy.deepcopy(stock(name))
    draft.generation_config.num_assistant_tokens = 4
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return hfaccel.optimize(draft) if fast else draft


def test_some_drafts_are_accepted_and_some_are_not():
    """Of those above."""
    model, draft, calls = stock("Llama"), make_draft("Llama", fast=False), []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    generate(model, "Llama", 1, attention_mask=None, eos_token_id=NO_END, assistant_model=draft)
    hook.remove()
    assert NEW / 4 < len(calls) < NEW


class Rising(LogitsProcessor):
    """Prefers later tokens of the vocabulary, the more the longer the text is; keeps what it was given."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append((input_ids.clone(), scores.clone()))
        return scores + torch.arange(scores.shape[-1]) * 0.001 * input_ids.shape[1]


@pytest.mark.parametrize("name", [*DECODERS, *ENCODED])
def test_a_processor_of_the_program(name):
    def use(model):
        rising = Rising()
        return generate(model, name, logits_processor=LogitsProcessorList([rising])), rising.seen

    assert_both(name, use)


class Sum(StoppingCriteria):
    """A text ends when the sum of its tokens is a multiple of seven."""

    def __call__(self, input_ids, scores, **_):
        return input_ids.sum(-1) % 7 == 0


@pytest.mark.parametrize("name", [*DECODERS, *ENCODED])
def test_a_criterion_of_the_program(name):
    assert_same(name, stopping_criteria=StoppingCriteriaList([Sum()]), eos_token_id=2)


@pytest.mark.parametrize("name", DECODERS)
def test_strings_that_stop(name):
    tokenizer = letters()
    said = generate(stock(name), name, 1, eos_token_id=NO_END)
    stop = tokenizer.decode(said[0, -NEW // 2])
    got = assert_same(name, 1, stop_strings=[stop], tokenizer=tokenizer, eos_token_id=NO_END)
    assert got.shape[1] < said.shape[1]


class Lines(TextStreamer):
    """Keeps what it would print."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.texts = []

    def on_finalized_text(self, text, stream_end=False):
        self.texts.append((text, stream_end))


@pytest.mark.parametrize("name", [*DECODERS, "T5"])
@pytest.mark.parametrize("skip_prompt", [False, True])
def test_streamer(name, skip_prompt):
    def use(model):
        lines = Lines(letters(), skip_prompt=skip_prompt)
        generate(model, name, 1, streamer=lines)
        return lines.texts

    assert len(assert_both(name, use)) > 2


@pytest.mark.parametrize("name", DECODERS)
def test_streamer_that_is_iterated(name):
    """The model computes in another thread, as in servers."""

    def use(model):
        pieces = TextIteratorStreamer(letters(), timeout=60)
        thread = Thread(target=generate, args=(model, name, 1), kwargs={"streamer": pieces})
        thread.start()
        texts = [*pieces]
        thread.join()
        return texts

    assert_both(name, use)


@pytest.mark.parametrize("name", DECODERS)
def test_embeddings_in_the_place_of_tokens(name):
    width = stock(name).get_input_embeddings().weight.shape[1]
    vectors = torch.randn(2, 6, width, generator=torch.Generator().manual_seed(0))
    assert_same(name, input_ids=None, attention_mask=None, inputs_embeds=vectors)


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_the_start_of_an_answer(name):
    start = torch.tensor([[1, 30, 31], [1, 40, 41], [1, 50, 51]])
    assert_same(name, decoder_input_ids=start)
    assert_same(name, forced_bos_token_id=9)


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_states_of_the_encoder(name):
    def use(model):
        with torch.no_grad():
            states = model.get_encoder()(**prompt(name))
        return generate(model, name, input_ids=None, encoder_outputs=states)

    assert_both(name, use)


@pytest.mark.parametrize("name", DECODERS)
def test_a_search_of_the_program(name):
    """A function that generate() calls instead of its own loop."""

    def search(model, input_ids, **kwargs):
        seen, cache = [], kwargs["past_key_values"]
        for _ in range(5):
            logits = model(input_ids=input_ids, past_key_values=cache).logits[:, -1]
            input_ids = (logits.topk(2).indices[:, 1:]) % VOCABULARY
            seen.append(input_ids)
        return torch.cat(seen, 1)

    assert_same(name, attention_mask=None, custom_generate=search)


def test_both_trees_are_asked():
    """assert_same would pass if it compared a tree with itself."""
    assert optimized("Llama") is not stock("Llama")

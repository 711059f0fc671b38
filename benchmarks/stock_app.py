"""The example's app around the stock pipeline, as transformers' guide for web servers has it: one queue, and
one loop that takes what waits, up to STOCK_BATCH texts, in order of arrival.

Unlike the guide's, the pipeline runs in a thread, so that the event loop stays free as ours does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch
from serve_fastapi import create_app, minilm
from transformers import pipeline

SETTINGS = {"truncation": True, "max_length": 256}


class Stock:
    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.pipe = pipeline("feature-extraction", model=minilm(), device="cpu")
        self.queue: asyncio.Queue[tuple[str, asyncio.Future[torch.Tensor]]] = asyncio.Queue()
        self.worker = ThreadPoolExecutor(1)

    async def __aenter__(self) -> Stock:
        self.task = asyncio.create_task(self.serve())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.task.cancel()

    async def __call__(self, text: str) -> torch.Tensor:
        answer: asyncio.Future[torch.Tensor] = asyncio.get_running_loop().create_future()
        await self.queue.put((text, answer))
        return await answer

    async def serve(self) -> None:
        while True:
            taken = [await self.queue.get()]
            with contextlib.suppress(asyncio.QueueEmpty):
                while len(taken) < self.batch:
                    taken.append(self.queue.get_nowait())
            texts = [text for text, _ in taken]
            vectors = await asyncio.get_running_loop().run_in_executor(self.worker, self.embed, texts)
            for (_, answer), vector in zip(taken, vectors, strict=True):
                if not answer.done():
                    answer.set_result(vector)

    def embed(self, texts: list[str]) -> list[torch.Tensor]:
        lengths = map(len, self.pipe.tokenizer(texts, **SETTINGS)["input_ids"])
        states: Any = self.pipe(texts, batch_size=len(texts), tokenize_kwargs=SETTINGS, return_tensors=True)
        means = [state[0, :length].mean(0) for state, length in zip(states, lengths, strict=True)]
        return [torch.nn.functional.normalize(mean, dim=0) for mean in means]


app = create_app(lambda: Stock(int(os.environ["STOCK_BATCH"])))

"""Serving: many concurrent requests through one model, in batches, without blocking the event loop.

    async with hfaccel.serve.embedder(tokenizer, hfaccel.optimize(model)) as embed:
        vector = await embed("a text")

`Batcher` does the same for any function that takes a list. `Generator` continues many prompts at once:

    with hfaccel.serve.Generator(hfaccel.optimize(model), tokenizer) as generate:
        print(generate.submit("a prompt", max_new_tokens=20).result().text)

Importing this package does not import torch.
"""

from hfaccel.serve.batcher import Batcher, Closed, Counts, Overloaded
from hfaccel.serve.generator import Generator, GeneratorCounts
from hfaccel.serve.stream import Generated, Stream
from hfaccel.serve.text import embedder

__all__ = [
    "Batcher",
    "Closed",
    "Counts",
    "Generated",
    "Generator",
    "GeneratorCounts",
    "Overloaded",
    "Stream",
    "embedder",
]

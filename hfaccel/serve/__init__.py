"""Serving: many concurrent requests through one model, in batches, without blocking the event loop.

    async with hfaccel.serve.embedder(tokenizer, hfaccel.optimize(model)) as embed:
        vector = await embed("a text")

`Batcher` does the same for any function that takes a list. Importing this package does not import torch.
"""

from hfaccel.serve.batcher import Batcher, Closed, Counts, Overloaded
from hfaccel.serve.text import embedder

__all__ = ["Batcher", "Closed", "Counts", "Overloaded", "embedder"]

"""Memory of a process that serves generated text, over a long time: `--minutes 60`.

A Generator over a small decoder gets requests of random length, some of which end early: readers leave, or
requests are cancelled. What counts is the process's own memory at the end, of what there was after the first
tenth. It ends with 1 if that grows by more than a twentieth.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hfaccel
from generation_memory import MIB, own
from report import check, save

VOCABULARY, LONGEST, NEW, AT_ONCE = 1000, 400, 60, 12
BAR = 1.05


def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
    )
    return hfaccel.optimize(LlamaForCausalLM(config).eval(), quantization="int4-weight-only")


def serve(generator: Any, draw: random.Random) -> None:
    """Some requests at once, of which some are left early."""
    streams = [
        generator.submit(
            [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(1, LONGEST))],
            max_new_tokens=draw.randrange(1, NEW),
            do_sample=draw.random() < 0.3,
            seed=draw.randrange(1000),
        )
        for _ in range(draw.randrange(1, AT_ONCE))
    ]
    for stream in streams:
        if draw.random() < 0.2:
            stream.cancel()
        elif draw.random() < 0.2:
            next(iter(stream), None)
            stream.cancel()
        else:
            stream.result()


def memory_over(seconds: float) -> Iterator[int]:
    """Bytes, ten times."""
    draw = random.Random(0)
    with hfaccel.serve.Generator(model()) as generator:
        for number in range(1, 11):
            end = time.monotonic() + seconds / 10
            while time.monotonic() < end:
                serve(generator, draw)
            yield own()
            print(f"{number} of 10: {generator.counts}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    minutes = parser.parse_args().minutes
    told = [*memory_over(60 * minutes)]
    row = {
        "name": f"{minutes:g} minutes",
        "bar": BAR,
        "measured": told[-1] / told[0],
        "MiB": [bytes_ // MIB for bytes_ in told],
    }
    save("generation-growth", [row])
    return check("memory at the end, of that after a tenth of the time", [row], at_most=True)


if __name__ == "__main__":
    sys.exit(main())

"""Requests per second and latencies of the served example against the same app with the stock pipeline.

MiniLM, real texts of mixed lengths, closed loop: each of 64 clients sends a text when it has its last answer.
Each server and its clients are processes of their own; all are alive at once and take turns. Ratios are
taken within a turn, against the better of the stock pipeline's two batch sizes.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# The worker of a side runs this file by its path.
sys.path.extend([str(Path(__file__).parent), str(Path(__file__).parent.parent / "demo")])

from corpus import texts
from hfaccel.bench import Side, take_turns
from http_client import Connection
from http_server import EXAMPLE, Server

HERE = Path(__file__).parent
LAUNCHER = str(Path(sys.executable).with_name("hfaccel-run"))
STOCK = {"stock, batch_size 1": {"STOCK_BATCH": "1"}, "stock, batch_size 32": {"STOCK_BATCH": "32"}}
FAST = {
    "fp32": {},
    "bf16": {"SERVE_DTYPE": "bfloat16"},
    "int8": {"SERVE_QUANTIZATION": "int8", "SERVE_CALL_TOKENS": "64"},
}
BARS = {"fp32": 1.8, "bf16": 3.3, "int8": 5.0}
TEXTS = 512
COMPARED = 8  # texts whose embeddings are compared across the sides


def clients(side: str, count: int, seconds: float) -> Callable[[], dict[str, Any]]:
    """Start the server of `side`; each call lets `count` clients ask for `seconds`."""
    corpus = texts(TEXTS)
    server = start(side)
    atexit.register(server.__exit__, None, None, None)
    turns = iter(range(1_000_000))

    def sample() -> dict[str, Any]:
        answers = asyncio.run(first_answers(server.port, corpus))
        done = asyncio.run(load(server.port, corpus, count, seconds, seed=next(turns)))
        finished = sum(end <= seconds for _, end in done)
        return {
            "seconds": seconds / finished,  # per request
            "latencies": [end - begin for begin, end in done],
            "answers": answers,
        }

    return sample


def start(side: str) -> Server:
    if side in STOCK:
        path = os.pathsep.join([str(EXAMPLE.parent), os.environ.get("PYTHONPATH", "")])
        return Server(HERE / "stock_app.py", PYTHONPATH=path, **STOCK[side])
    return Server(launcher=(LAUNCHER,), **FAST[side])


async def first_answers(port: int, corpus: list[str]) -> list[list[float]]:
    async with Connection(port) as connection:
        return [
            (await connection.ask("/embed", {"text": text})).json()["embedding"] for text in corpus[:COMPARED]
        ]


async def load(
    port: int, corpus: list[str], count: int, seconds: float, seed: int
) -> list[tuple[float, float]]:
    """(begin, end) of each request, in seconds since the start. What was sent is waited for."""
    start, done = time.perf_counter(), list[tuple[float, float]]()

    async def client(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        async with Connection(port) as connection:
            while (begin := time.perf_counter() - start) < seconds:
                reply = await connection.ask("/embed", {"text": chance.choice(corpus)})
                if reply.status != 200:
                    raise RuntimeError(f"every request must be answered, but got {reply}")
                done.append((begin, time.perf_counter() - start))

    await asyncio.gather(*map(client, range(count)))
    return done


def percentile(samples: list[dict[str, Any]], share: float) -> float:
    """Seconds, over all requests of these samples."""
    latencies = sorted(latency for sample in samples for latency in sample["latencies"])
    return float(latencies[min(int(len(latencies) * share), len(latencies) - 1)])


def summary(samples: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "requests_per_second": round(1 / statistics.median(sample["seconds"] for sample in samples), 2),
        "p50_ms": round(percentile(samples, 0.50) * 1e3, 1),
        "p99_ms": round(percentile(samples, 0.99) * 1e3, 1),
        "requests": sum(len(sample["latencies"]) for sample in samples),
    }


def least_cosine(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Of the embeddings (which have length 1) of the same texts."""
    pairs = zip(one["answers"], other["answers"], strict=True)
    return min(sum(a * b for a, b in zip(x, y, strict=True)) for x, y in pairs)


def measure(names: list[str], arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Samples of each side, taken in turn; the first of each, which warms it up, does not count."""
    settings = {"count": arguments.clients, "seconds": arguments.seconds}
    sides = [Side(name, f"{__file__}:clients", {"side": name, **settings}) for name in names]
    show = partial(print, "a turn is done", file=sys.stderr, flush=True)
    turns = take_turns(sides, arguments.rounds, show)
    return {name: [turn[place] for turn in turns] for place, name in enumerate(names)}


def main() -> int:
    from report import check, save

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precisions", default="fp32,bf16,int8", help="of: fp32,bf16,int8")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=12.0, help="of a sample")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    precisions = arguments.precisions.split(",")
    taken = measure([*STOCK, *precisions], arguments)
    summaries = {name: summary(samples) for name, samples in taken.items()}
    best = max(STOCK, key=lambda name: summaries[name]["requests_per_second"])
    rates, delays = [], []
    for precision in precisions:
        pairs = zip(taken[best], taken[precision], strict=True)
        ratios = [stock["seconds"] / fast["seconds"] for stock, fast in pairs]
        cosine = least_cosine(taken[best][0], taken[precision][0])
        measured = statistics.median(ratios)
        rates.append({"name": precision, "bar": BARS[precision], "measured": measured, "ratios": ratios})
        p99 = percentile(taken[precision], 0.99) / percentile(taken[best], 0.99)
        delays.append({"name": precision, "bar": 1.0, "measured": p99, "least_cosine": cosine})
    save("serving", [*rates, *delays, {"against": best, "sides": summaries, **vars(arguments)}])
    for name, seen in summaries.items():
        print(name, seen)
    missed = check(f"requests/s, times {best}", rates)
    return missed | check(f"p99, times {best}", delays, at_most=True)


if __name__ == "__main__":
    sys.exit(main())

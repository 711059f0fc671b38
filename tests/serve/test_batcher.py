"""The batcher with real threads: functions that wait until the test lets them go."""

from __future__ import annotations

import asyncio
import pickle
import threading

import pytest

from hfaccel.errors import HfaccelError, UsageError
from hfaccel.serve import Batcher, Closed, Overloaded

PATIENCE = 30  # seconds after which a test has failed; none waits that long


class Gate:
    """A function of a list that waits for `open` or `step` (one call), and remembers its batches."""

    def __init__(self, function=lambda items: [item * 2 for item in items]):
        self.function, self.batches = function, []
        self.entered, self.permits = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, items):
        self.batches.append(list(items))
        self.entered.release()
        assert self.permits.acquire(timeout=PATIENCE)
        return self.function(items)

    def open(self):
        self.permits.release(1000)

    def step(self):
        self.permits.release()

    async def runs(self):
        assert await asyncio.to_thread(self.entered.acquire, timeout=PATIENCE)


def one(_):
    return 1


def run(coroutine):
    async def limited():
        async with asyncio.timeout(PATIENCE):
            return await coroutine

    return asyncio.run(limited())


async def start(batcher, *items):
    """Tasks for these items, accepted in this order."""
    tasks = [asyncio.ensure_future(batcher(item)) for item in items]
    await asyncio.sleep(0)
    return tasks


def test_every_request_gets_its_own_answer():
    async def main():
        async with Batcher(lambda items: [item * 2 for item in items], size=one, max_queue=500) as batcher:
            assert await asyncio.gather(*map(batcher, range(500))) == [item * 2 for item in range(500)]
            return batcher.counts

    assert run(main()) == (0, 0, 500, 500, 0, 0)


def test_what_arrives_during_a_batch_makes_the_next():
    async def main():
        gate = Gate()
        async with Batcher(gate, size=one) as batcher:
            first = await start(batcher, 0)
            await gate.runs()
            others = await start(batcher, 1, 2, 3)
            assert batcher.counts[:2] == (3, 1)
            gate.open()
            assert await asyncio.gather(*first, *others) == [0, 2, 4, 6]
        return gate.batches

    assert run(main()) == [[0], [1, 2, 3]]


def test_the_loop_is_free_while_the_function_runs():
    async def main():
        gate = Gate(lambda items: [threading.current_thread() for _ in items])
        async with Batcher(gate, size=one) as batcher:
            (task,) = await start(batcher, 0)
            await gate.runs()
            gate.open()  # only a free loop gets here
            assert await task is not threading.current_thread()
            return await task is await batcher(1)  # one thread for all

    assert run(main())


def test_with_a_delay_company_is_waited_for():
    async def main():
        gate = Gate()
        gate.open()
        async with Batcher(gate, size=one, max_delay=PATIENCE * 2, max_batch=3) as batcher:
            tasks = await start(batcher, 1, 2)
            await asyncio.sleep(0.05)
            assert gate.batches == []
            assert await asyncio.gather(*tasks, *await start(batcher, 3)) == [2, 4, 6]  # the batch is full
            assert gate.batches == [[1, 2, 3]]
            last = await start(batcher, 4)
            await batcher.close()  # nobody else can come, so the delay ends
            assert await asyncio.gather(*last) == [8]

    run(main())


def test_after_its_delay_a_request_goes_alone():
    async def main():
        async with Batcher(lambda items: items, size=one, max_delay=0.01) as batcher:
            return await batcher("alone")

    assert run(main()) == "alone"


def test_near_lengths_go_together():
    async def main():
        gate = Gate(lambda items: [len(item) for item in items])
        async with Batcher(gate) as batcher:
            first = await start(batcher, "first")
            await gate.runs()
            tasks = await start(batcher, "a" * 5, "b" * 200, "c" * 6, "d" * 205)
            gate.open()
            assert await asyncio.gather(*first, *tasks) == [5, 5, 200, 6, 205]
        return [[len(item) for item in batch] for batch in gate.batches]

    assert run(main()) == [[5], [5, 6], [200, 205]]


def test_a_full_queue_refuses_and_says_when_to_come_again():
    async def main():
        gate = Gate()
        async with Batcher(gate, size=one, max_queue=2) as batcher:
            running = await start(batcher, 0)
            await gate.runs()
            waiting = await start(batcher, 1, 2)
            with pytest.raises(
                Overloaded, match=r"at most 2 requests may wait.*retry in 1\.0 s.*max_queue"
            ) as raised:
                await batcher(3)
            gate.open()
            assert await asyncio.gather(*running, *waiting) == [0, 2, 4]
            assert await batcher(3) == 6  # there is room again
            return raised.value, batcher.counts

    error, counts = run(main())
    assert error.retry_after == 1.0  # nothing was finished yet, so nothing is known
    assert counts == (0, 0, 4, 4, 0, 1)
    assert pickle.loads(pickle.dumps(error)).retry_after == 1.0


def test_a_cancelled_request_leaves_the_queue():
    async def main():
        gate = Gate()
        async with Batcher(gate, size=one, max_queue=2) as batcher:
            running = await start(batcher, 0)
            await gate.runs()
            leaving, staying = await start(batcher, 1, 2)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert batcher.counts[:2] == (1, 1)
            new = await start(batcher, 3)  # in the place of the one that left
            gate.open()
            assert await asyncio.gather(*running, staying, *new) == [0, 4, 6]
        return gate.batches, batcher.counts

    batches, counts = run(main())
    assert batches == [[0], [2, 3]]
    assert counts == (0, 0, 4, 3, 1, 0)


def test_cancelling_a_running_request_drops_its_result_only():
    async def main():
        gate = Gate()
        async with Batcher(gate, size=one) as batcher:
            first = await start(batcher, 0)
            await gate.runs()
            leaving, staying = await start(batcher, 1, 2)
            gate.step()
            await asyncio.gather(*first)
            await gate.runs()
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            gate.open()
            assert await staying == 4
            assert await batcher(3) == 6
        return gate.batches, batcher.counts

    assert run(main()) == ([[0], [1, 2], [3]], (0, 0, 4, 3, 1, 0))


def test_cancelled_while_it_runs_alone():
    async def main():
        gate = Gate()
        async with Batcher(gate, size=one) as batcher:
            (leaving,) = await start(batcher, 0)
            await gate.runs()
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            others = await start(batcher, 1)
            gate.open()
            assert await asyncio.gather(*others) == [2]
        return gate.batches, batcher.counts

    assert run(main()) == ([[0], [1]], (0, 0, 2, 1, 1, 0))


def test_a_bad_item_fails_only_its_own_request():
    def inverse(items):
        return [1 / item for item in items]

    async def main():
        gate = Gate(inverse)
        async with Batcher(gate, size=one) as batcher:
            first = await start(batcher, 1)
            await gate.runs()
            tasks = await start(batcher, 2, 0, 4)
            gate.open()
            await asyncio.gather(*first)
            return await asyncio.gather(*tasks, return_exceptions=True), gate.batches

    (half, error, quarter), batches = run(main())
    assert (half, quarter) == (0.5, 0.25) and isinstance(error, ZeroDivisionError)
    assert batches == [[1], [2, 0, 4], [2], [0], [4]]


@pytest.mark.parametrize("raised", [StopIteration, KeyError, asyncio.CancelledError])
def test_whatever_the_function_raises_reaches_the_request(raised):
    def fail(items):
        raise raised("told")

    async def main():
        async with Batcher(fail, size=one) as batcher:
            # Python turns a StopIteration that leaves a coroutine into a RuntimeError.
            with pytest.raises(RuntimeError if raised is StopIteration else raised):
                await batcher(1)
            return batcher.counts

    assert run(main()).answered == 1


@pytest.mark.parametrize("returned", [[], [1, 2]])
def test_a_function_must_return_one_result_for_each_item(returned):
    async def main():
        async with Batcher(lambda items: returned, size=one) as batcher:
            await batcher(1)

    with pytest.raises(
        HfaccelError, match=f"one result for each item, in order, but got {len(returned)} for 1"
    ):
        run(main())


def test_a_size_that_cannot_be_asked_fails_its_request():
    async def main():
        async with Batcher(lambda items: items) as batcher:
            with pytest.raises(TypeError, match="len"):
                await batcher(5)
            assert await batcher("") == ""  # no tokens count as one
            return batcher.counts

    assert run(main()) == (0, 0, 2, 2, 0, 0)


def test_items_are_prepared_beside_the_function():
    async def main():
        gate = Gate(lambda items: [(item, threading.current_thread().name) for item in items])
        prepared = []

        def prepare(text):
            prepared.append(threading.current_thread().name)
            return list(text)

        async with Batcher(gate, prepare=prepare) as batcher:
            first = await start(batcher, "ab")
            await gate.runs()
            second = await start(batcher, "cd")
            while len(prepared) < 2:  # although the function runs
                await asyncio.sleep(0.001)
            gate.open()
            answers = await asyncio.gather(*first, *second)
            with pytest.raises(TypeError):
                await batcher(7)
        return answers, prepared

    answers, prepared = run(main())
    assert [item for item, _ in answers] == [["a", "b"], ["c", "d"]]
    assert not {name for _, name in answers} & set(prepared)


def test_closing_finishes_what_was_accepted():
    before = set(threading.enumerate())

    async def main():
        gate = Gate()
        batcher = Batcher(gate, size=one, prepare=lambda item: item)
        tasks = await start(batcher, *range(20))
        await gate.runs()
        closing = [asyncio.ensure_future(batcher.close()) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Closed, match="closed and takes no more"):
            await batcher(99)
        gate.open()
        await asyncio.gather(*closing)
        assert all(task.done() for task in tasks)
        assert [task.result() for task in tasks] == [2 * item for item in range(20)]
        started = set(threading.enumerate()) - before
        assert not [thread for thread in started if thread.name.startswith("hfaccel")]
        await batcher.close()

    run(main())


def test_closing_waits_for_what_is_still_prepared():
    async def main():
        entered, go = threading.Event(), threading.Event()

        def prepare(item):
            entered.set()
            assert go.wait(PATIENCE)
            return item

        batcher = Batcher(lambda items: items, size=one, prepare=prepare)
        tasks = await start(batcher, "a", "b")
        assert await asyncio.to_thread(entered.wait, PATIENCE)
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0.01)
        go.set()
        assert await asyncio.gather(*tasks) == ["a", "b"]
        await closing

    run(main())


def test_a_batcher_that_was_not_used_closes():
    async def main():
        async with Batcher(len):
            pass

    run(main())


def test_a_batcher_belongs_to_one_loop():
    batcher = Batcher(lambda items: items, size=one)

    async def use():
        return await batcher(1)

    assert run(use()) == 1
    with pytest.raises(UsageError, match="one event loop"):
        run(use())


def test_a_loop_that_ends_first_leaves_nothing_behind():
    gate = Gate()
    batcher = Batcher(gate, size=one)

    async def main():
        await start(batcher, 0)
        await gate.runs()
        await start(batcher, 1)  # waits; asyncio.run cancels both

    run(main())
    gate.open()
    batcher._worker.shutdown()  # the worker ends by itself
    assert gate.batches == [[0]]


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("max_tokens", 0),
        ("max_batch", 0),
        ("max_queue", -1),
        ("call_tokens", 0),
        ("max_tokens", "many"),
        ("max_tokens", None),
        ("max_tokens", 2.5),
        ("max_batch", True),
    ],
)
def test_limits_have_rules(limit, value):
    with pytest.raises(UsageError, match=rf"`{limit} >= 1` must hold, but got {value!r}"):
        Batcher(len, **{limit: value})


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "soon", None])
def test_a_delay_is_a_number_of_seconds(delay):
    with pytest.raises(UsageError, match=f"max_delay.*but got {delay!r}"):
        Batcher(len, max_delay=delay)


async def a_coroutine(items):
    return items


class Awaited:
    async def __call__(self, items):
        return items


@pytest.mark.parametrize("name", ["function", "size", "prepare"])
def test_functions_are_plain_functions(name):
    others = {} if name == "function" else {"function": list}
    for given, text in (
        (3, "function, but got 3"),
        (a_coroutine, "got the async"),
        (Awaited(), "got the async"),
    ):
        with pytest.raises(UsageError, match=f"`{name}` must be a.*{text}"):
            Batcher(**others, **{name: given})


@pytest.mark.parametrize("returned", [None, 3, "a", b"a", {"a": 1}])
def test_what_is_no_list_of_results_is_no_answer(returned):
    calls = []

    async def main():
        async with Batcher(lambda items: calls.append(items) or returned, size=one) as batcher:
            await batcher(1)

    with pytest.raises(HfaccelError, match=f"but got {type(returned).__name__} for 1"):
        run(main())
    assert calls == [[1]]


def test_a_batcher_of_a_closed_loop_closes():
    gate = Gate()
    batcher = Batcher(gate, size=one)
    loop = asyncio.new_event_loop()
    task = loop.create_task(batcher(1))
    loop.run_until_complete(gate.runs())
    loop.close()  # and nobody has cancelled the task
    gate.open()
    run(batcher.close())
    task._log_destroy_pending = False


@pytest.mark.parametrize("idle_release", [0.05, None])
def test_an_idle_batcher_gives_back_what_the_allocator_keeps(monkeypatch, idle_release):
    """Once for each time that it goes idle, in the thread that computes, and not while a request runs."""
    released = threading.Semaphore(0)
    names = []

    def release():
        names.append(threading.current_thread().name)
        released.release()

    monkeypatch.setattr("hfaccel.serve.batcher.release", release)

    async def main():
        gate = Gate()
        async with Batcher(gate, size=one, idle_release=idle_release) as batcher:
            (task,) = await start(batcher, 1)
            await gate.runs()
            await asyncio.sleep(0.2)
            assert not names
            gate.open()
            await task
            if idle_release is None:
                await asyncio.sleep(0.2)
                assert not names
                return
            assert await asyncio.to_thread(released.acquire, timeout=PATIENCE)
            await batcher(2)
            assert await asyncio.to_thread(released.acquire, timeout=PATIENCE)
            await asyncio.sleep(0.2)
        assert len(names) == 2 and all(name.startswith("hfaccel-serve") for name in names)

    run(main())


@pytest.mark.parametrize("idle_release", [0, -1, "soon", float("nan")])
def test_a_time_of_idleness_must_be_one(idle_release):
    with pytest.raises(UsageError, match="idle_release > 0"):
        Batcher(one, idle_release=idle_release)

"""The loop: order, errors in their place, laziness, batches; with steps made here, for all inputs."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfaccel.pipelines.parts import Shape, Steps
from hfaccel.pipelines.run import Run
from hfaccel.pipelines.schedule import Limits, span

MAIN = threading.get_ident


class Trial:
    """Inputs are (number, lengths of its parts, where it fails, at which part)."""

    def __init__(self, inputs, rows, tokens=4096, streams=False):
        self.inputs, self.batches, self.read, self.running = inputs, [], 0, 0
        self.threads = {"read": set(), "prepare": set(), "compute": set(), "finish": set()}
        steps = Steps(self.prepare, self.shape, self.compute, self.finish)
        self.run = Run(iter(self), steps, Limits(rows, tokens), streams=streams)

    def __iter__(self):
        return self

    def __next__(self):
        self.threads["read"].add(MAIN())
        if self.read == len(self.inputs):
            raise StopIteration
        self.read += 1
        given = self.inputs[self.read - 1]
        if given[2] == "read":
            raise failed(given[0], "read")
        return given

    def prepare(self, given):
        self.threads["prepare"].add(MAIN())
        number, lengths, failure, at = given
        for part, length in enumerate(lengths):
            if failure == "prepare" and part == at:
                raise failed(number, "prepare")
            yield (number, part, length, failure == "compute" and part == at), part == len(lengths) - 1

    def shape(self, inputs):
        return Shape(inputs[2], frozenset({"odd"} if inputs[0] % 5 == 4 else ()))

    def compute(self, batch):
        assert not self.running, "two batches at once"
        self.threads["compute"].add(MAIN())
        self.batches.append(batch)
        if bad := [number for number, _, _, fails in batch if fails]:
            raise failed(bad[0], "compute")
        return [(number, part) for number, part, _, _ in batch]

    def finish(self, outputs):
        self.threads["finish"].add(MAIN())
        if outputs and self.inputs[outputs[0][0]][2] == "finish":
            raise failed(outputs[0][0], "finish")
        return outputs

    def outcomes(self):
        self.given = result = []
        while True:
            try:
                result.append(next(self.run))
            except StopIteration:
                return result
            except (LookupError, ValueError, ArithmeticError, Panic) as error:
                result.append((type(error), error.args[0]))


class Panic(BaseException):
    """As pyo3_runtime.PanicException is: no Exception."""


FAILURES = {"read": LookupError, "prepare": ValueError, "compute": ArithmeticError, "finish": OverflowError}


def failed(number, failure):
    return Panic(number) if number % 3 == 1 else FAILURES[failure](number)


def outcome(given):
    number, lengths, failure, _ = given
    if failure in FAILURES and (lengths or failure == "read"):
        return type(failed(number, failure)), number
    return [(number, part) for part in range(len(lengths))]


@st.composite
def inputs(draw):
    length = st.one_of(st.none(), st.integers(1, 300))
    result = []
    for number in range(draw(st.integers(0, 40))):
        lengths = draw(st.lists(length, min_size=0, max_size=4))
        failure = draw(st.sampled_from([None] * 8 + list(FAILURES)))
        at = draw(st.integers(0, max(0, len(lengths) - 1)))
        result.append((number, lengths, failure, at))
    return result


@settings(max_examples=150)
@given(inputs(), st.integers(1, 6), st.integers(50, 1000), st.booleans())
def test_every_input_has_its_outcome_in_order(given, rows, tokens, streams):
    trial = Trial(given, rows, tokens, streams)
    assert trial.outcomes() == [outcome(one) for one in given]
    assert all(len(batch) <= rows for batch in trial.batches)
    free = [[length for _, _, length, _ in batch] for batch in trial.batches if batch[0][2] is not None]
    assert all(len(batch) == 1 or max(batch) * len(batch) <= tokens for batch in free)


@settings(max_examples=60)
@given(st.lists(st.none(), max_size=40), st.integers(1, 6), st.booleans())
def test_what_has_no_length_keeps_the_batches_of_its_order(parts, rows, streams):
    given = [(number, [None], None, 0) for number in range(len(parts))]
    trial = Trial(given, rows, streams=streams)
    trial.outcomes()
    numbers = [[number for number, *_ in batch] for batch in trial.batches]
    assert numbers == [list(range(i, min(i + rows, len(given)))) for i in range(0, len(given), rows)]


@settings(max_examples=60)
@given(inputs(), st.integers(1, 6))
def test_a_batch_never_mixes_what_is_free_with_what_is_not_nor_different_keys(given, rows):
    trial = Trial(given, rows)
    trial.outcomes()
    free = [batch for batch in trial.batches if batch[0][2] is not None]
    assert all(len({number % 5 == 4 for number, *_ in batch}) == 1 for batch in free)
    assert all(len({length is None for _, _, length, _ in batch}) == 1 for batch in trial.batches)


def plain(count):
    return [(number, [10 + number % 7], None, 0) for number in range(count)]


def test_a_stream_with_batch_size_one_is_read_one_by_one():
    """A program may answer a result with the next input: microphones, queues."""
    trial = Trial(plain(20), rows=1, streams=True)
    for count in range(1, 21):
        next(trial.run)
        assert trial.read == count


def test_other_streams_are_read_ahead_by_a_bounded_number():
    trial = Trial(plain(1000), rows=4, streams=True)
    assert trial.read == 0
    for count in range(1, 900):
        next(trial.run)
        assert trial.read <= count + span(4)
    assert trial.read < 1000


def test_results_come_while_inputs_are_left():
    trial = Trial(plain(1000), rows=8)
    next(trial.run)
    assert len(trial.batches) <= 2


@pytest.mark.parametrize("rows", [1, 2, 8, 32])
@pytest.mark.parametrize("streams", [False, True])
def test_a_source_that_fails_at_item_100_has_given_99_results(rows, streams):
    given = [*plain(99), (99, [5], "read", 0)]
    trial = Trial(given, rows, streams=streams)
    assert [next(trial.run) for _ in range(99)] == [outcome(one) for one in given[:99]]
    with pytest.raises(LookupError):
        next(trial.run)
    with pytest.raises(StopIteration):
        next(trial.run)


def test_a_bad_input_fails_alone():
    given = plain(8)
    given[3] = (3, [12], "compute", 0)
    trial = Trial(given, rows=8)
    assert trial.outcomes() == [outcome(one) for one in given]


def test_a_batch_that_fails_though_its_inputs_do_not_is_an_error():
    trial = Trial(plain(4), rows=4)
    compute = trial.compute
    error = ArithmeticError("no padding token")

    def alone_only(batch):
        if len(batch) > 1:
            raise error
        return compute(batch)

    steps = Steps(trial.prepare, trial.shape, alone_only, trial.finish)
    run = Run(iter(plain(4)), steps, Limits(4), streams=False)
    for _ in range(4):
        with pytest.raises(ArithmeticError, match="no padding token"):
            next(run)


def test_the_program_is_read_and_the_model_computes_in_the_programs_thread():
    trial = Trial(plain(200), rows=8)
    trial.outcomes()
    here = {MAIN()}
    assert trial.threads["read"] == trial.threads["compute"] == here
    assert trial.threads["prepare"] - here and trial.threads["finish"] - here
    assert len(trial.threads["prepare"] - here) == 1


def test_nothing_runs_beside_the_program():
    """Between two results the background thread has nothing to do: the program may use the tokenizer."""
    trial = Trial(plain(100), rows=4)
    for _ in range(100):
        next(trial.run)
        assert trial.run._job is None


def test_batches_do_not_depend_on_timing():
    given = [(number, [1 + number * 37 % 100], None, 0) for number in range(150)]
    quick, slow = Trial(given, rows=4), Trial(given, rows=4)
    shape = slow.shape
    object.__setattr__(slow.run._steps, "shape", lambda inputs: time.sleep(0.0005) or shape(inputs))
    quick.outcomes()
    slow.outcomes()
    assert quick.batches == slow.batches


def test_a_few_inputs_need_no_thread():
    trial = Trial(plain(4), rows=4)
    trial.outcomes()
    assert trial.threads["prepare"] == trial.threads["finish"] == {MAIN()}


def test_an_interrupt_leaves_nothing_running():
    trial = Trial(plain(100), rows=4)

    def interrupted(batch):
        raise KeyboardInterrupt

    run = Run(
        iter(plain(100)),
        Steps(trial.prepare, trial.shape, interrupted, trial.finish),
        Limits(4),
        streams=False,
    )
    with pytest.raises(KeyboardInterrupt):
        next(run)
    assert run._job is None


def test_after_an_interrupt_nothing_is_lost():
    trial = Trial(plain(60), rows=4)
    compute, calls = trial.compute, []

    def interrupted(batch):
        calls.append(batch)
        if len(calls) in (3, 4, 9):
            raise KeyboardInterrupt
        return compute(batch)

    steps = Steps(trial.prepare, trial.shape, interrupted, trial.finish)
    run, results, interrupts = Run(iter(plain(60)), steps, Limits(4), streams=True), [], 0
    while len(results) < 60:
        try:
            results.append(next(run))
        except KeyboardInterrupt:
            interrupts += 1
    assert results == [outcome(one) for one in plain(60)] and interrupts == 3


class Interrupted(Trial):
    """A Trial in which these steps, counted together, are interrupted before they do anything."""

    def __init__(self, interrupts, *arguments, **settings):
        self.interrupts, self.steps = interrupts, itertools.count()
        super().__init__(*arguments, **settings)

    def interrupt(self):
        if error := self.interrupts.get(next(self.steps)):
            raise error

    def __next__(self):
        self.interrupt()
        return super().__next__()

    def prepare(self, given):
        for made in super().prepare(given):
            self.interrupt()
            yield made

    def compute(self, batch):
        self.interrupt()
        return super().compute(batch)

    def finish(self, outputs):
        self.interrupt()
        return super().finish(outputs)

    def outcomes(self):
        result = []
        while True:
            try:
                return result + super().outcomes()
            except (KeyboardInterrupt, SystemExit):
                result += self.given


@pytest.mark.parametrize("green", ["", "no thread is a thread here"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    given=inputs(),
    rows=st.integers(1, 6),
    streams=st.booleans(),
    interrupts=st.dictionaries(st.integers(0, 150), st.sampled_from([KeyboardInterrupt, SystemExit])),
)
def test_nothing_is_lost_wherever_an_interrupt_comes(monkeypatch, green, given, rows, streams, interrupts):
    monkeypatch.setattr("hfaccel.threads.green_threads", lambda: green)
    trial = Interrupted(interrupts, given, rows, streams=streams)
    assert trial.outcomes() == [outcome(one) for one in given]


def test_in_line_there_is_no_thread_and_the_reason_is_told_once(monkeypatch):
    monkeypatch.setattr("hfaccel.threads.green_threads", lambda: "no thread is a thread here")
    trial, told, before = Trial(plain(60), rows=4), [], threading.active_count()
    steps = Steps(trial.prepare, trial.shape, trial.compute, trial.finish)
    run = Run(iter(plain(60)), steps, Limits(4), streams=False, note=told.append)
    assert list(run) == [outcome(one) for one in plain(60)]
    assert trial.threads["prepare"] == trial.threads["finish"] == {MAIN()}
    assert threading.active_count() == before
    assert told == [
        "inputs were prepared before the model computed, not meanwhile: no thread is a thread here"
    ]


def several(given):
    return iter([((given, part), part == 2) for part in range(3)])


def a_run(inputs):
    """Three model inputs of ten tokens for each input; the result is their number."""
    steps = Steps(several, lambda inputs: Shape(10), list, len)
    return Run(inputs, steps, Limits(4), streams=True)


def test_a_stream_that_is_left_early_leaves_no_thread():
    """Without the garbage collector, which may be long in coming."""
    before = set(threading.enumerate())
    gc.disable()
    try:
        for _ in range(3):
            run = a_run(iter(range(100)))
            assert [next(run) for _ in range(10)] == [3] * 10
            (thread,) = set(threading.enumerate()) - before
            del run
            thread.join(timeout=30)
            assert not thread.is_alive()
    finally:
        gc.enable()


def test_a_forked_child_can_go_on_with_a_stream():
    run = a_run(iter(range(40)))
    assert [next(run) for _ in range(10)] == [3] * 10
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that waits for ever
        os._exit(0 if list(run) == [3] * 30 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert list(run) == [3] * 30


def test_threads_end_with_the_run():
    before = set(threading.enumerate())
    trial = Trial(plain(100), rows=4)
    for _ in range(10):
        next(trial.run)
    (thread,) = set(threading.enumerate()) - before
    del trial
    gc.collect()  # the trial and its run know each other
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_the_background_works_in_the_callers_modes_with_one_thread():
    from contextvars import ContextVar

    from hfaccel.pipelines.background import Background

    variable = ContextVar("variable", default=0)
    variable.set(7)
    found = []

    def look():
        found.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled(), variable.get()))
        found.append(torch.get_num_threads())

    threads = torch.get_num_threads()
    background = Background(print)
    with torch.inference_mode():
        background.start(look).result()
    with torch.no_grad():
        background.start(look).result()
    background.start(look).result()
    assert found[::2] == [(True, False, 7), (False, False, 7), (False, True, 7)]
    assert set(found[1::2]) == {1} and torch.get_num_threads() == threads

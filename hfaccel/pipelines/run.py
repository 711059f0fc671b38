"""The loop: reads inputs, prepares them while the model computes, computes batches, returns results in order.

Everything that the program owns stays in the program's thread: its iterator is read there and the model
computes there. The background thread gets only inputs that were read, and only while the model computes.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from functools import partial

from hfaccel.pipelines.background import Background
from hfaccel.pipelines.parts import Begun, Failed, Parts, Prepared, Steps, interrupts
from hfaccel.pipelines.schedule import Limits, ahead, least, next_batch, span


class Run(Iterator[object]):
    """Results in the order of the inputs. An input's exception is raised in place of its result, and `next`
    goes on after it.

    `streams`: the inputs come from an iterator that may depend on the results. An iterator of this kind is
    read only as far as transformers would read it: without look-ahead if `limits.rows` is 1. `note` gets the
    reason if no thread can work while the model computes. After an interrupt, `next` continues where the loop
    was.
    """

    def __init__(
        self,
        inputs: Iterator[object],
        steps: Steps,
        limits: Limits,
        *,
        streams: bool,
        note: Callable[[str], object] = lambda reason: None,
    ) -> None:
        self._inputs, self._steps, self._limits = inputs, steps, limits
        self._streams = streams
        self._background = Background(note)
        self._job: Future[None] | None = None  # runs while the model computes
        self._batch: list[Prepared] = []  # the model computes these
        self._outputs: list[object] | None = None  # of that batch
        self._read: deque[tuple[int, object]] = deque()  # inputs not begun yet
        self._begun: Begun | None = None
        self._waiting: list[Prepared] = []
        self._computed: deque[tuple[Prepared, object]] = deque()  # outputs, or Failed, without results yet
        self._parts: dict[int, Parts] = {}
        self._done: dict[int, object] = {}  # results, or Failed, not returned yet
        self._number = 0  # inputs read
        self._exhausted = False
        self._given = 0
        self._seen, self._made, self._tokens = 0, 0, 0  # inputs begun, their model inputs, tokens of these

    def __next__(self) -> object:
        while self._given not in self._done:
            if not self._step():
                raise StopIteration
        result = self._done.pop(self._given)
        self._given += 1
        if isinstance(result, Failed):
            raise result.error
        return result

    def _step(self) -> bool:
        """Compute one batch, and do the background work meanwhile. False if nothing is left to do."""
        self._join()  # an interrupt may have left a job or a batch
        if self._computed and not self._waiting:
            self._finish()  # before reading the next input: the program may be waiting for these results
            return True
        self._fill()
        if not self._waiting:
            return self._given in self._done
        try:
            self._take()
            count = self._count_ahead(self._batch)
            self._read_ahead(0 if self._streams and self._limits.rows == 1 else count)
            self._job = self._start(count)
            self._outputs = self._compute(self._batch)
        finally:
            self._join()
        return True

    def _join(self) -> None:
        """Wait for the background job. Keep the batch's outputs, or queue the batch again if it has none."""
        if self._job is not None:
            wait([self._job])
        job, batch, outputs = self._job, self._batch, self._outputs
        if outputs is not None:
            self._computed.extend(zip(batch, outputs, strict=True))
        else:  # interrupted
            self._waiting = [*(p for p in batch if not self._settled(p.index)), *self._waiting]
        self._job, self._batch, self._outputs = None, [], None
        if job is not None:
            job.result()

    def _count_ahead(self, batch: list[Prepared]) -> int:
        tokens, free = sum(p.shape.length or 0 for p in batch), batch[0].shape.length is not None
        mean = max(1.0, self._tokens / max(1, self._made))
        return ahead(self._limits.rows, free, len(self._waiting), tokens, mean)

    # Beside the model

    def _start(self, count: int) -> Future[None] | None:
        more = count > 0 and (self._read or self._begun)
        if not self._computed and not more:
            return None
        return self._background.start(partial(self._beside, count))

    def _beside(self, count: int) -> None:
        self._finish()
        for _ in range(count):
            if not self._prepare():
                break

    def _prepare(self) -> bool:
        """Make the next model input, or find out that an input fails or has none. False: no input is left."""
        if self._begun is None:
            if not self._read:
                return False
            self._seen += 1
            self._begun = self._begin(*self._read.popleft())
        if self._begun is not None and not self._make(self._begun):
            self._begun = None
        return True

    def _begin(self, index: int, read: object) -> Begun | None:
        if isinstance(read, Failed):
            self._fail(index, read.error)
            return None
        self._parts[index] = Parts()
        return Begun(index, read, self._steps.prepare(read))

    def _make(self, begun: Begun) -> bool:
        """Make the next model input of this input. False if there are no more."""
        index = begun.index
        try:
            made = next(begun.rest, None)
            if self._settled(index):
                return False
            if made is None:
                self._parts[index].total = begun.count
                self._complete(index)
                return False
            inputs, is_last = made
            prepared = Prepared(index, begun.count, is_last, inputs, self._steps.shape(inputs))
        except BaseException as error:  # raised when it is this input's turn
            if interrupts(error):
                self._begin_again(begun)
                raise
            self._fail(index, error)
            return False
        begun.count += 1
        self._made += 1
        self._tokens += prepared.shape.length or 0
        if is_last:
            self._parts[index].total = begun.count
        self._waiting.append(prepared)
        return not is_last

    def _begin_again(self, begun: Begun) -> None:
        """Prepare an interrupted input from its start: the interrupt has ended its iterator."""
        index = begun.index
        self._begun = None
        self._seen -= 1
        self._waiting = [prepared for prepared in self._waiting if prepared.index != index]
        self._read.appendleft((index, begun.read))

    def _finish(self) -> None:
        while self._computed:
            prepared, output = self._computed[0]
            index = prepared.index
            if isinstance(output, Failed):
                self._fail(index, output.error)
            elif not self._settled(index):
                self._parts[index].outputs[prepared.part] = output
                self._complete(index)
            self._computed.popleft()  # last: after an interrupt before this line, the output is handled again

    def _complete(self, index: int) -> None:
        if self._settled(index) or not self._parts[index].complete():
            return
        outputs = self._parts[index].outputs
        try:
            self._done[index] = self._steps.finish([outputs[part] for part in sorted(outputs)])
        except BaseException as error:  # raised when it is this input's turn
            if interrupts(error):
                raise
            self._done[index] = Failed(error)
        del self._parts[index]

    def _fail(self, index: int, error: BaseException) -> None:
        """Make the first error of an input its result, and drop the rest of the input."""
        if not self._settled(index):
            self._done[index] = Failed(error)
            self._parts.pop(index, None)
            self._waiting = [prepared for prepared in self._waiting if prepared.index != index]

    def _settled(self, index: int) -> bool:
        return index < self._given or index in self._done

    # In the program's thread

    def _fill(self) -> None:
        """Prepare the model inputs that the next batch still needs, while the model waits."""
        while self._given not in self._done and len(self._waiting) < self._least():
            if not self._prepare():
                self._read_ahead(1)
                if not self._read:
                    return

    def _least(self) -> int:
        free = bool(self._waiting) and self._waiting[0].shape.length is not None
        return least(self._limits.rows, free, self._streams)

    def _read_ahead(self, count: int) -> None:
        """Read as many inputs as will make `count` model inputs, judging by the inputs so far."""
        wanted = -(-count * self._seen // self._made) if self._made > self._seen else count
        while len(self._read) < wanted and not self._exhausted and self._has_room():
            try:
                read = next(self._inputs)
            except StopIteration:
                self._exhausted = True
                return
            except BaseException as error:  # raised when it is this input's turn
                if interrupts(error):
                    raise
                read = Failed(error)
            self._read.append((self._number, read))
            self._number += 1

    def _has_room(self) -> bool:
        """Whether one more input may be read: one slow input must not hold back ever more results."""
        waiting_freely = bool(self._waiting) and self._waiting[0].shape.length is not None
        return not waiting_freely or self._number - self._given < span(self._limits.rows)

    def _take(self) -> None:
        """Choose the next batch from the waiting model inputs."""
        first = self._waiting[0]
        if first.shape.length is None:
            fixed = itertools.takewhile(lambda prepared: prepared.shape.length is None, self._waiting)
            batch = list(itertools.islice(fixed, self._limits.rows))
        else:
            alike = [
                p for p in self._waiting if p.shape.length is not None and p.shape.keys == first.shape.keys
            ]
            lengths = [p.shape.length for p in alike if p.shape.length is not None]
            batch = [alike[index] for index in next_batch(lengths, self._limits)]
        taken = set(map(id, batch))
        self._batch = batch
        self._waiting = [prepared for prepared in self._waiting if id(prepared) not in taken]

    def _compute(self, batch: list[Prepared]) -> list[object]:
        """The outputs of a batch. If the batch fails, each input is computed alone, so that a bad input fails
        alone. If every input succeeds alone, the batch itself cannot be computed, and all its inputs get the
        batch's error."""
        try:
            return self._steps.compute([prepared.inputs for prepared in batch])
        except BaseException as error:  # raised when it is this input's turn
            if interrupts(error):
                raise
            failed = Failed(error)
        if len(batch) == 1:
            return [failed]
        alone = [self._compute([prepared])[0] for prepared in batch]
        return alone if any(isinstance(output, Failed) for output in alone) else [failed] * len(batch)

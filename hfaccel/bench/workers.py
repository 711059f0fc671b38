"""Processes of sides that may crash or hang: with time limits, their last words, and an end for certain."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from hfaccel import native
from hfaccel.bench.pairs import Sample, Side, Worker
from hfaccel.errors import HfaccelError

GRACE = 5.0  # seconds from the end of its input to SIGKILL


class Limits(NamedTuple):
    """Seconds that a process may take."""

    start: float = 600.0
    sample: float = 600.0


class WatchedWorker(Worker):
    """A worker in a process group of its own, which is stopped while others compute.

    Threads of a stopped group do not spin, whatever its engine's rules for waiting are."""

    def __init__(self, side: Side, limits: Limits) -> None:
        self.limits = limits
        self._limit = limits.start
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            super().__init__(side)
        except BaseException:  # Ctrl-C too must leave no process behind
            self.kill()
            raise
        self._limit = limits.sample

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.side.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=self.side.variables(),
            process_group=0,
            preexec_fn=_end_with_parent,
        )

    def ask(self) -> None:
        self._signal(signal.SIGCONT)
        super().ask()

    def answer(self) -> Sample:
        sample = super().answer()
        self._signal(signal.SIGSTOP)
        return sample

    def _line(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], self._limit)
        if not ready:
            raise HfaccelError(f"it gave no answer within {self._limit:g} seconds and was ended")
        return super()._line()

    def _ended(self) -> HfaccelError:
        code = self.process.wait()
        how = f"it ended with exit code {code}" if code >= 0 else f"it was ended by {_name(-code)}"
        said = self.last_words()
        return HfaccelError(f"{how}: {said}" if said else how)

    def last_words(self) -> str:
        """The last line that the process wrote on standard error."""
        self._errors.seek(0)
        return last_line(self._errors.read().decode(errors="replace"))

    def kill(self) -> None:
        """End all processes of the group at once."""
        if hasattr(self, "process"):
            self._signal(signal.SIGKILL)
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):  # what was not yet written has no reader any more
                        stream.close()
        self._errors.close()

    def close(self) -> None:
        """Let the process end by itself, and end what is left of it."""
        assert self.process.stdin is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(OSError):  # the process has ended already
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # kill() is for that
            self.process.wait(GRACE)
        self.kill()

    def __exit__(self, *error: object) -> None:
        if any(error):
            self.kill()
        else:
            self.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # the group has ended
            os.killpg(self.process.pid, number)


def _end_with_parent() -> None:
    """In the child: let it end when the study is killed."""
    if native.arena is not None:
        with contextlib.suppress(OSError):  # where the system refuses, the end of its input ends the child
            native.arena.end_with_parent(signal.SIGKILL)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


OWN = ("hfaccel.errors.HfaccelError: ", "hfaccel: ")


def last_line(text: str) -> str:
    """The last line that says something, without the name of hfaccel's own error."""
    line = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    for start in OWN:
        line = line.removeprefix(start)
    return line[:300]


class Crew:
    """The processes of one side, one for each instance, and what became of them.

    A failure is kept, not raised: the other sides go on. Samples of several instances are taken at the same
    time; their seconds are those in which all together do the work once.
    """

    def __init__(self, sides: tuple[Side, ...], limits: Limits) -> None:
        self.failure = ""
        self.skipped = ""
        self.samples: list[Sample] = []
        self.workers: list[WatchedWorker] = []
        with self._guarded():
            for side in sides:
                self.workers.append(WatchedWorker(side, limits))

    @property
    def alive(self) -> bool:
        return not self.failure and not self.skipped

    def sample(self) -> Sample:
        """A sample, {} where the side has failed."""
        taken: list[Sample] = []
        with self._guarded():
            for worker in self.workers:
                worker.ask()
            taken = [worker.answer() for worker in self.workers]
        if not taken or not self.alive:
            return {}
        self.skipped = next((sample["skipped"] for sample in taken if "skipped" in sample), "")
        if self.skipped:
            self._end()
            return {}
        return joined(taken)

    def processes(self) -> list[int]:
        return [worker.process.pid for worker in self.workers]

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except HfaccelError as error:
            self.failure = str(error)
            self._end()
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.workers = []

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.workers = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        if any(error):
            self._end()
        else:
            self.close()


def joined(samples: list[Sample]) -> Sample:
    """The sample of all instances together: seconds that multiply to their common throughput."""
    if len(samples) == 1:
        return samples[0]
    one = dict(samples[0])
    one["seconds"] = 1 / sum(1 / sample["seconds"] for sample in samples)
    for name in ("calls", "first_token", "per_token"):
        if name in one:
            one[name] = [value for sample in samples for value in sample[name]]
    one["page_faults"] = sum(sample["page_faults"] for sample in samples) / len(samples)
    peaks = [sample["peak_memory_mib"] for sample in samples]
    one["peak_memory_mib"] = None if None in peaks else sum(peaks)
    threads = {sample["threads"] for sample in samples}
    one["threads"] = threads.pop() if len(threads) == 1 else None
    return one

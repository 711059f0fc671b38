"""Several instances of a program: started together, their output prefixed, none left behind."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from hfaccel import native
from hfaccel.errors import ScriptError
from hfaccel.launcher.prepare import Launch
from hfaccel.launcher.start import bind, say, set_memory_policy, start_environment
from hfaccel.plan import MemoryPolicy

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
)
GRACE = 10.0  # seconds between asking a process to end and ending it


def run_instances(launches: Sequence[Launch], log_path: str | None = None) -> int:
    """Run all of them to their end. Returns 0, or the exit code of the first that failed.

    Signals are forwarded. When one fails the others are asked to end, and ended after GRACE seconds.
    Raises ScriptError if one cannot be started; then none is left.
    """
    folder = _log_folder(log_path)
    instances: list[Instance] = []
    handlers = {number: signal.signal(number, _forward_to(instances)) for number in FORWARDED}
    try:
        for number, launch in enumerate(launches):
            instances.append(Instance(number, launch, folder))
        for instance in instances:  # no thread before the last child is forked
            instance.read()
        return _wait(instances)
    finally:
        for instance in instances:
            instance.signal(signal.SIGTERM)
        for instance in instances:
            instance.end()
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Instance:
    """One running program, in a process group of its own so that signals reach all of it."""

    def __init__(self, number: int, launch: Launch, folder: Path | None) -> None:
        self.number = number
        with bound(launch) as notes:
            for note in notes:
                say(f"instance {number}: {note}")
            try:
                self.process = subprocess.Popen(
                    launch.command,
                    env=start_environment(launch),
                    stdin=subprocess.DEVNULL,  # which of them should read a line?
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    process_group=0,
                    preexec_fn=_end_with_parent,
                )
            except OSError as error:
                what = f"{launch.command[0]} is not ({error.strerror})"
                raise ScriptError(f"a program must be startable, but {what}") from None
        self.log = (folder / f"instance_{number}.log").open("wb") if folder else None
        self.readers: list[threading.Thread] = []

    def read(self) -> None:
        """Start to pass its output on."""
        for pair in (
            (self.process.stdout, sys.stdout.buffer),
            (self.process.stderr, sys.stderr.buffer),
        ):
            self.readers.append(threading.Thread(target=self._copy, args=pair, daemon=True))
            self.readers[-1].start()

    def _copy(self, source: IO[bytes], target: IO[bytes]) -> None:
        prefix = f"[{self.number}] ".encode()
        for line in source:
            ended = line if line.endswith(b"\n") else line + b"\n"
            with _output:
                _write(target, prefix + ended)
                if self.log is not None:
                    _write(self.log, line)

    def signal(self, number: int) -> bool:
        """Whether there was anybody left to get it."""
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def end(self) -> None:
        """End what is left of it: the program itself, and what it started and did not wait for."""
        deadline = time.monotonic() + GRACE
        alive = self.signal(0)
        while alive and time.monotonic() < deadline:
            self.process.poll()  # or it would stay as a zombie that can be signalled for ever
            time.sleep(0.02)
            alive = self.signal(0)
        if alive:
            self.signal(signal.SIGKILL)
        self.process.wait()
        for reader in self.readers:
            reader.join(GRACE)
        if self.log is not None:
            self.log.close()


@contextmanager
def bound(launch: Launch) -> Iterator[list[str]]:
    """Bind this process for as long as it takes to start a child, which inherits that."""
    mask = os.sched_getaffinity(0)
    policy = _memory_policy()
    try:
        yield bind(launch)
    finally:
        os.sched_setaffinity(0, mask)
        if policy is not None and launch.plan["memory_policy"].value is not None:
            set_memory_policy(policy)


def _memory_policy() -> MemoryPolicy | None:
    try:
        return MemoryPolicy(*native.arena.memory_policy()) if native.arena is not None else None
    except OSError:
        return None  # not to be read, so not to be set either


_output = threading.Lock()  # lines of two instances must not mix


def _write(target: IO[bytes], line: bytes) -> None:
    try:
        target.write(line)
        target.flush()
    except (BrokenPipeError, ValueError):
        pass  # nobody reads any more; the programs run on, as they would alone


def _log_folder(path: str | None) -> Path | None:
    if path is None:
        return None
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScriptError(f"--log-path must be a folder, but {path!r} is not ({error.strerror})") from None
    return Path(path)


def _end_with_parent() -> None:
    """In the child: should hfaccel-run be killed, which nobody can catch, the child ends too."""
    if native.arena is not None:
        native.arena.end_with_parent(signal.SIGTERM)


def _forward_to(instances: list[Instance]) -> Callable[[int, FrameType | None], None]:
    def handler(number: int, frame: FrameType | None) -> None:
        for instance in instances:
            instance.signal(number)

    return handler


def _wait(instances: list[Instance]) -> int:
    ended: queue.SimpleQueue[tuple[Instance, int]] = queue.SimpleQueue()

    def wait_for(instance: Instance) -> None:
        ended.put((instance, instance.process.wait()))

    for instance in instances:
        threading.Thread(target=wait_for, args=(instance,), daemon=True).start()
    for _ in instances:
        instance, code = ended.get()
        if code != 0:
            shown = code if code > 0 else 128 - code  # as a shell shows the end by a signal
            rest = [other for other in instances if other.process.returncode is None]
            how = f"ended with code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
            say(f"instance {instance.number} {how}" + ("; stopping the others" if rest else ""))
            return shown
    return 0

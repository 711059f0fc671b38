"""Several instances of a program: started together, their output prefixed, none left behind."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, MappingProxyType
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
GRACE = 10.0  # seconds from SIGTERM to SIGKILL
SHARED = "HFACCEL_SHARED"  # the folder where the instances of one start meet; removed when they have ended
OUT, ERR = 1, 2  # descriptors; the objects of sys may be closed, or have a buffer of their own


def run_instances(launches: Sequence[Launch], log_path: str | None = None) -> int:
    """Run all instances to their end. Returns 0, or the exit code of the first instance that failed.

    Signals are forwarded. When an instance fails, the others get SIGTERM, and SIGKILL after GRACE seconds.
    Raises ScriptError if an instance cannot be started, after ending those that were.
    """
    instances: list[Instance] = []
    with contextlib.ExitStack() as stack:
        logs: list[IO[bytes] | None] = [None] * len(launches)
        if log_path is not None:
            logs = [stack.enter_context(log) for log in _open_logs(launches, log_path)]
        shared = stack.enter_context(_meeting_folder())
        stack.callback(_end_all, instances)
        stack.enter_context(_forwarding(instances))
        for launch, log in zip(launches, logs, strict=True):
            instances.append(Instance(launch, log, shared))
        for instance in instances:  # no thread before the last child is forked
            instance.read()
        return _wait(instances)


class Instance:
    """One running program, in a process group of its own so that signals reach all its processes."""

    def __init__(
        self, launch: Launch, log: IO[bytes] | None, shared: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.number = launch.slot.instance if launch.slot else 0
        self.log = log
        self.threads: list[threading.Thread] = []
        with bound(launch) as notes:
            for note in notes:
                say(f"instance {self.number}: {note}")
            try:
                self.process = subprocess.Popen(
                    launch.command,
                    env={**start_environment(launch), **shared},
                    stdin=subprocess.DEVNULL,  # it is undefined which instance would read a line
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    process_group=0,
                    preexec_fn=_end_with_parent,
                )
            except OSError as error:
                what = f"{launch.command[0]} is not ({error.strerror})"
                raise ScriptError(f"a program must be startable, but {what}") from None

    def read(self) -> None:
        """Start to pass the program's output on."""
        for source, target in ((self.process.stdout, OUT), (self.process.stderr, ERR)):
            self.threads.append(_start(self._copy, source, target))

    def _copy(self, source: IO[bytes], target: int) -> None:
        prefix = f"[{self.number}] ".encode()
        open_targets = {target, *([self.log.fileno()] if self.log else [])}
        for line in source:
            ended = line if line.endswith(b"\n") else line + b"\n"
            with _output:
                for descriptor in sorted(open_targets):
                    if not _write(descriptor, prefix + ended if descriptor == target else line):
                        open_targets.discard(descriptor)
            if not open_targets:
                source.close()  # nobody reads any more, and the program shall notice
                return

    def signal(self, number: int) -> bool:
        """Send a signal; whether a process was left to get it."""
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def end(self, deadline: float) -> None:
        """Wait for all processes of the program, also those it left behind; kill them at the deadline."""
        alive = self.signal(0)
        while alive and time.monotonic() < deadline:
            self.process.poll()  # otherwise a zombie would stay, which can still be signalled
            time.sleep(0.02)
            alive = self.signal(0)
        if alive:
            self.signal(signal.SIGKILL)
        self.process.wait()
        for thread in self.threads:
            thread.join(GRACE)


_output = threading.Lock()  # lines of two instances must not mix


def _write(descriptor: int, data: bytes) -> bool:
    """Write all of it; whether there is still a reader. On a full disk or a closed stream, lines get lost."""
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError:
        return False
    except OSError:
        return True  # otherwise the program would wait for ever
    return True


def _start(target: Callable[..., None], *arguments: object) -> threading.Thread:
    """Start a thread that takes no signals: only the main thread acts on them."""

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        target(*arguments)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def bound(launch: Launch) -> Iterator[list[str]]:
    """Bind this process while it starts a child, which inherits the binding. Yields what was refused."""
    mask = os.sched_getaffinity(0)
    policy = _memory_policy()
    try:
        yield bind(launch)
    finally:
        with contextlib.suppress(OSError):  # where the system refuses this, it refused the binding too
            os.sched_setaffinity(0, mask)
        if policy is not None and launch.plan["memory_policy"].value is not None:
            set_memory_policy(policy)


def _memory_policy() -> MemoryPolicy | None:
    try:
        return MemoryPolicy(*native.arena.memory_policy()) if native.arena is not None else None
    except OSError:
        return None  # where it cannot be read, it cannot be set either


@contextlib.contextmanager
def _meeting_folder() -> Iterator[dict[str, str]]:
    """The variable by which instances find each other, to share weights (hfaccel/memory/meeting.py)."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="hfaccel-", ignore_cleanup_errors=True)
    except OSError as error:
        say(f"the instances cannot share weights: there is no folder to meet in ({error.strerror})")
        yield {}
        return
    with folder as path:
        yield {SHARED: path}


def _open_logs(launches: Sequence[Launch], path: str) -> list[IO[bytes]]:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        numbers = [launch.slot.instance if launch.slot else 0 for launch in launches]
        return [Path(path, f"instance_{number}.log").open("wb", buffering=0) for number in numbers]
    except OSError as error:
        raise ScriptError(
            f"--log-path must be a folder that can be written to, but {error.filename!r} is not "
            f"({error.strerror})"
        ) from None


def _end_with_parent() -> None:
    """In the child: let it end when hfaccel-run is killed."""
    if native.arena is not None:
        with contextlib.suppress(OSError):
            native.arena.end_with_parent(signal.SIGTERM)


@contextlib.contextmanager
def _forwarding(instances: list[Instance]) -> Iterator[None]:
    """Pass signals on to the instances. A signal that is ignored (nohup) stays ignored, here and there."""

    def handler(number: int, frame: FrameType | None) -> None:
        for instance in instances:
            instance.signal(number)

    taken = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _wait(instances: list[Instance]) -> int:
    ended: queue.SimpleQueue[tuple[Instance, int]] = queue.SimpleQueue()

    def wait_for(instance: Instance) -> None:
        ended.put((instance, instance.process.wait()))

    for instance in instances:
        _start(wait_for, instance)
    for _ in instances:
        instance, code = ended.get()
        if code != 0:
            rest = [other for other in instances if other.process.returncode is None]
            how = f"ended with code {code}" if code > 0 else f"was ended by {_signal_name(-code)}"
            say(f"instance {instance.number} {how}" + ("; stopping the others" if rest else ""))
            return code if code > 0 else 128 - code  # as a shell shows the end by a signal
    return 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


def _end_all(instances: list[Instance]) -> None:
    """End the instances that still run: SIGTERM, a wait, SIGKILL."""
    for instance in instances:
        instance.signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for instance in instances:
        instance.end(deadline)

"""Threads beside the caller's. Jobs run in the caller's thread while the interpreter ends, where the system
allows no more threads, and where a thread of `threading` is a greenlet (gevent, eventlet)."""

from __future__ import annotations

import _thread
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
GREEN = "gevent or eventlet has replaced threads by greenlets, which run inside the program's own thread"


class Pool:
    """Runs jobs in `count` threads, which start with the first job and end with this object.

    Where there can be no threads, a job runs inside `submit`, and `problem` has the reason.
    """

    def __init__(self, count: int, name: str, begin: Callable[[], None] | None = None) -> None:
        self._count, self._name, self._begin = count, name, begin
        self._executor: ThreadPoolExecutor | None = None
        self._process = 0  # the process that has the threads; a forked child has none of them
        self.problem = ""

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Start `job`. The future has its result or Exception; KeyboardInterrupt and SystemExit of a job that
        runs here are raised here."""
        self.problem = green_threads()
        if not self.problem:
            if self._executor is None or self._process != os.getpid():
                self._process = os.getpid()
                self._executor = ThreadPoolExecutor(self._count, self._name, self._begin)
            try:
                return self._executor.submit(job)
            except RuntimeError as error:  # the interpreter ends, or the system allows no more threads
                self.problem = str(error)
                self._executor = None  # its queue holds the job, which no thread will run
        return _done_here(job)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown()


def _done_here(job: Callable[[], T]) -> Future[T]:
    done: Future[T] = Future()
    try:
        done.set_result(job())
    except Exception as error:  # noqa: BLE001 - raised where the result is asked for
        done.set_exception(error)
    return done


def green_threads() -> str:
    """GREEN where a thread of `threading` is a greenlet; "" where it is a thread of the system."""
    return GREEN if _starts_greenlets(_thread.start_new_thread) else ""


@functools.cache
def _starts_greenlets(start: Callable[..., object]) -> bool:
    """Whether a thread of `threading` runs in the system's thread that started it.

    `start`, which `threading` calls, is the key of the cache: libraries replace that function at any time.
    """
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(threading.get_native_id()))
    try:
        thread.start()
    except RuntimeError:  # no thread can start, so none is a greenlet
        return False
    thread.join()
    return found == [threading.get_native_id()]

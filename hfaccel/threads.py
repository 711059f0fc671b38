"""Threads beside the caller's, where there can be any: jobs run in line at the end of the interpreter, where
no more threads are allowed, and where what looks like a thread is a greenlet."""

from __future__ import annotations

import _thread
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
GREEN = "gevent or eventlet has replaced threads by greenlets, which run inside the program's own thread"


class Pool:
    """Runs jobs in `count` threads that start with the first job and end with this object, or in line.

    Work in line is done when `submit` returns. `problem` says why it is done so; "" where it is not.
    """

    def __init__(self, count: int, name: str, begin: Callable[[], None] | None = None) -> None:
        self._count, self._name, self._begin = count, name, begin
        self._executor: ThreadPoolExecutor | None = None
        self._process = 0  # that has the threads: a forked child has none of its parent's
        self.problem = ""

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Begin `job`. The answer has its result or Exception; what interrupts it in line is raised here."""
        self.problem = green_threads()
        if not self.problem:
            if self._executor is None or self._process != os.getpid():
                self._process = os.getpid()
                self._executor = ThreadPoolExecutor(self._count, self._name, self._begin)
            try:
                return self._executor.submit(job)
            except RuntimeError as error:  # the interpreter ends, or the system allows no more threads
                self.problem = str(error)
                self._executor = None  # it keeps the job, for a thread that it will not have
        return _in_line(job)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown()


def _in_line(job: Callable[[], T]) -> Future[T]:
    done: Future[T] = Future()
    try:
        done.set_result(job())
    except Exception as error:  # noqa: BLE001 - raised where the result is asked for
        done.set_exception(error)
    return done


def green_threads() -> str:
    """GREEN where a thread of `threading` is a greenlet; "" where threads are threads."""
    return GREEN if _starts_greenlets(_thread.start_new_thread) else ""


@functools.cache
def _starts_greenlets(start: Any) -> bool:
    """Whether what `start` begins, by way of `threading`, is in the operating system's thread that begins it.

    For libraries patch it when the program begins, or later: the answer is for this very function.
    """
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(threading.get_native_id()))
    try:
        thread.start()
    except RuntimeError:  # there can be no thread, so there is no greenlet either
        return False
    thread.join()
    return found == [threading.get_native_id()]

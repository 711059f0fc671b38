"""One thread beside the model. It works only while the model computes: whoever starts a job waits for its
end before control returns to the program, so the program never meets it, nor shares a tokenizer with it.
"""

from __future__ import annotations

import contextvars
import ctypes
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch


class Background:
    """Runs jobs one after the other in a thread that starts with the first and ends with this object."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._process = 0  # that has the thread: a forked child has none of its parent's

    def start(self, job: Callable[[], None]) -> Future[None]:
        """Begin `job` in the caller's context: context variables, gradients and inference mode."""
        if self._executor is None or self._process != os.getpid():
            self._process = os.getpid()
            self._executor = ThreadPoolExecutor(1, "hfaccel-pipeline", initializer=_compute_serially)
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        context = contextvars.copy_context()
        return self._executor.submit(lambda: context.run(_in_modes, job, *modes))


def _in_modes(job: Callable[[], None], gradients: bool, inference: bool) -> None:
    with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
        job()


def _compute_serially() -> None:
    """Let torch's operators in this thread use no other threads.

    A second OpenMP team would fight the model for its cores, and GNU's runtime slows the barriers of all
    teams down once there are more threads than CPUs. torch.set_num_threads is for the whole process;
    the runtime's own function is for the calling thread.
    """
    torch.get_num_threads()  # torch sets a thread's number once, at its first question; ours must come after
    runtime = getattr(ctypes.CDLL(None), "omp_set_num_threads", None)
    if runtime is not None:
        runtime(1)

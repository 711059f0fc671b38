"""One thread that works only while the model computes. Whoever starts a job waits for its end before control
returns to the program. So the thread never runs at the same time as the program's own code, and never uses
the tokenizer at the same time.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import Future

import torch

from hfaccel.apply.openmp import torch_function
from hfaccel.threads import Pool


class Background:
    """Runs jobs one after another in a thread that starts with the first job and ends with this object.

    If no thread can be started, a job runs before the model computes, in the calling thread; `note` gets the
    reason once.
    """

    def __init__(self, note: Callable[[str], object]) -> None:
        self._pool, self._note, self._noted = Pool(1, "hfaccel-pipeline", _compute_serially), note, False

    def start(self, job: Callable[[], None]) -> Future[None]:
        """Begin `job` in the caller's context: context variables, gradients and inference mode."""
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        context = contextvars.copy_context()
        started = self._pool.submit(lambda: context.run(_in_modes, job, *modes))
        if self._pool.problem and not self._noted:
            self._noted = True
            self._note(f"inputs were prepared before the model computed, not meanwhile: {self._pool.problem}")
        return started


def _in_modes(job: Callable[[], None], gradients: bool, inference: bool) -> None:
    with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
        job()


def _compute_serially() -> None:
    """Let torch's operators in this thread use no other threads.

    A second OpenMP team would compete with the model for the cores, and GNU's runtime slows the barriers of
    all teams once there are more threads than CPUs. torch.set_num_threads changes the whole process; the
    runtime's own function changes the calling thread.
    """
    torch.get_num_threads()  # the first call sets the thread's number; our number must come after it
    set_threads = torch_function("omp_set_num_threads")
    if set_threads is not None:
        set_threads(1)

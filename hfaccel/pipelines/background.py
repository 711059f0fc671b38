"""One thread beside the model. It works only while the model computes: whoever starts a job waits for its
end before control returns to the program, so the program never meets it, nor shares a tokenizer with it.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import Future

import torch

from hfaccel.apply.openmp import torch_function
from hfaccel.threads import Pool


class Background:
    """Runs jobs one after the other in a thread that starts with the first and ends with this object.

    Where there can be no thread a job runs in line, before the model computes; `note` is told why, once.
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
            self._note(f"inputs were prepared before the model computed, not beside it: {self._pool.problem}")
        return started


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
    set_threads = torch_function("omp_set_num_threads")
    if set_threads is not None:
        set_threads(1)

"""Whether a thread's current call has to compute padding (`engine.models.padding` says which calls do)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

UNPADS = "_hfaccel_unpad"  # attribute of a fused layer: whether it leaves out padding when allowed

_thread = threading.local()


def is_computed() -> bool:
    """Whether this thread is in a call that has to compute padding."""
    return getattr(_thread, "depth", 0) > 0


@contextmanager
def computed() -> Iterator[None]:
    _thread.depth = getattr(_thread, "depth", 0) + 1
    try:
        yield
    finally:
        _thread.depth -= 1

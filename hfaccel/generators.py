"""The states of random number generators, kept for the program."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kept_as_found() -> Iterator[None]:
    """Restore the states of torch's CPU generator, NumPy's and Python's at the end of the context. Models
    draw random numbers when they are made, and when a part of them is in training mode."""
    numpy = sys.modules.get("numpy.random")
    states = torch.get_rng_state(), random.getstate(), numpy.get_state() if numpy else None
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy:
            numpy.set_state(states[2])

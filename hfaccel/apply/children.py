"""Processes that were given a model by the one that started them share its cores."""

from __future__ import annotations

import multiprocessing
import os

from hfaccel.apply.program import settings_of_program
from hfaccel.host import read_host
from hfaccel.plan import Goal, make_plan

_known = 0  # the process that has taken its share


def share_cores() -> None:
    """In a child of multiprocessing, once: compute with its share of the cores among its siblings, unless the
    program or the environment says with how many threads. Otherwise each uses all cores, and all wait for
    each other."""
    global _known
    if _known == os.getpid() or not _is_child():
        return
    _known = os.getpid()
    import torch

    facts = read_host()
    program = settings_of_program(facts)
    threads = make_plan(facts, Goal("process", {}, dict(os.environ), program=program))["threads"].value
    if threads is not None and facts.limits.siblings > 1:
        torch.set_num_threads(max(1, threads // facts.limits.siblings))


def _is_child() -> bool:
    """While a spawned child reads its arguments it has no parent yet, but a name."""
    named = multiprocessing.current_process().name != "MainProcess"
    return named or multiprocessing.parent_process() is not None

"""What the program has set by itself before it calls hfaccel. It wins, as an environment variable does."""

from __future__ import annotations

import os
import sys

from hfaccel import native
from hfaccel.apply import openmp
from hfaccel.host import HostFacts


def settings_of_program(facts: HostFacts) -> dict[str, str]:
    """Knob -> how the program has set it, in words. Imports no torch: without it there is nothing to find."""
    found = {"threads": _threads(facts), "memory_policy": _memory_policy()}
    return {knob: words for knob, words in found.items() if words}


def _threads(facts: HostFacts) -> str:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_num_threads"):  # half imported: nobody has set anything
        return ""
    number = openmp.threads_set()
    if number == 0 and not torch.backends.mkl.is_available():
        number = _unless_default(facts, torch.get_num_threads())
    return f"torch.set_num_threads({number})" if number else ""


def _unless_default(facts: HostFacts, number: int) -> int:
    """`number`, or 0 where torch could have come to it by itself: it counts CPUs or cores."""
    mask = facts.limits.affinity
    return 0 if number in (os.cpu_count(), len(mask), len(facts.topology.cores(mask))) else number


def _memory_policy() -> str:
    """numactl sets it too, for the program that it starts."""
    if native.arena is None:
        return ""
    try:
        mode, nodes = native.arena.memory_policy()
    except OSError:  # a container may forbid the question, and then it forbids the answer to be changed
        return ""
    return "" if mode == "default" else f"memory policy {mode}:{','.join(map(str, nodes))}"

"""Changes to the running process: affinity, memory, malloc, torch's threads. Each says what it did."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hfaccel import native
from hfaccel.host import HostFacts, Library, format_number_list
from hfaccel.outcome import Outcome
from hfaccel.plan import MemoryPolicy, Plan

# glibc's names and numbers (malloc.h). Order matters: arena_max first, because setting the threshold
# freezes the trim threshold at 128 KiB, which the second call then raises.
M_ARENA_MAX, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -8, -1, -3
MAX_RETAINED = 1 << 30  # bytes


def apply_plan(plan: Plan, facts: HostFacts) -> list[Outcome]:
    """Set this process up as planned. A refusal is a line in the answer, not an exception."""
    actions: dict[str, Callable[[Any], Outcome]] = {
        "affinity": _apply_affinity,
        "memory_policy": _apply_memory_policy,
        "allocator": lambda value: _apply_allocator(value, facts),
        "threads": _apply_threads,
        "interop_threads": _apply_interop_threads,
    }
    return [
        Outcome(knob, False, plan[knob].reason) if plan[knob].value is None else action(plan[knob].value)
        for knob, action in actions.items()
    ]


def _apply_affinity(cpus: tuple[int, ...]) -> Outcome:
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        return Outcome("affinity", False, f"sched_setaffinity({list(cpus)}) failed: {error.strerror}")
    return Outcome("affinity", True, f"bound to CPUs {format_number_list(cpus)}")


def _apply_memory_policy(policy: MemoryPolicy) -> Outcome:
    if native.arena is None:
        return Outcome("memory_policy", False, native.MISSING)
    try:
        native.arena.set_memory_policy(policy.mode, policy.nodes)
    except OSError as error:
        return Outcome("memory_policy", False, str(error.args[-1]))
    return Outcome("memory_policy", True, f"new pages: {policy}")


def _apply_allocator(value: Library | str, facts: HostFacts) -> Outcome:
    if isinstance(value, Library):
        return Outcome("allocator", False, f"{value.kind} must be preloaded: start with hfaccel-run")
    if native.arena is None:
        return Outcome("allocator", False, native.MISSING)
    retained = retained_bytes(facts)
    settings = (
        ("arena_max", M_ARENA_MAX, 1),
        ("trim_threshold", M_TRIM_THRESHOLD, retained),
        ("mmap_threshold", M_MMAP_THRESHOLD, retained),
    )
    refused = [name for name, option, number in settings if not native.arena.mallopt(option, number)]
    if refused:
        return Outcome("allocator", False, f"glibc refused {', '.join(refused)}")
    reason = f"glibc keeps up to {retained >> 20} MiB of freed memory, in one arena for all threads"
    return Outcome("allocator", True, reason)


def retained_bytes(facts: HostFacts) -> int:
    """How much freed memory glibc may keep: an eighth of what the process may use, at most 1 GiB."""
    usable = min(filter(None, (facts.limits.memory_limit, facts.memory.total)), default=MAX_RETAINED)
    return max(1 << 20, min(MAX_RETAINED, usable // 8))


def _apply_threads(threads: int) -> Outcome:
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return Outcome("threads", True, f"torch computes with {threads}")


def _apply_interop_threads(threads: int) -> Outcome:
    import torch

    if torch.get_num_interop_threads() == threads:
        return Outcome("interop_threads", True, f"torch has {threads}")
    try:
        torch.set_num_interop_threads(threads)
    except RuntimeError:  # torch allows it once, before the first of them has started
        has = torch.get_num_interop_threads()
        return Outcome("interop_threads", False, f"torch keeps {has}: they are in use already")
    return Outcome("interop_threads", True, f"torch has {threads}")

"""Changes to the running process: affinity, memory, malloc, torch's threads. Each says what it did."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from hfaccel import native
from hfaccel.apply import openmp
from hfaccel.host import Library, format_number_list
from hfaccel.outcome import Outcome
from hfaccel.plan import MemoryPolicy, Plan
from hfaccel.portable import set_affinity

# glibc's names and numbers (malloc.h).
M_ARENA_MAX, M_MMAP_THRESHOLD, M_TOP_PAD, M_TRIM_THRESHOLD = -8, -3, -2, -1
SLACK = 64 << 20  # bytes by which the heap outgrows what it may retain before it is cut back


def apply_plan(plan: Plan, done: Mapping[str, Outcome] = MappingProxyType({})) -> list[Outcome]:
    """Set this process up as planned, except for the knobs that are `done`. A refusal is a line in the
    answer, not an exception."""
    # In this order: malloc before torch is imported, because threads keep the arena that they begin with;
    # affinity after that, because the import of torch may bind this thread somewhere else.
    actions: dict[str, Callable[[Any], Outcome]] = {
        "allocator": lambda value: _apply_allocator(value, plan["retained_memory"].value),
        "memory_policy": _apply_memory_policy,
        "threads": _apply_threads,
        "interop_threads": _apply_interop_threads,
        "affinity": _apply_affinity,
    }

    def outcome(knob: str) -> Outcome:
        if knob in done:
            return done[knob]
        value = plan[knob].value
        return Outcome(knob, False, plan[knob].reason) if value is None else actions[knob](value)

    return [outcome(knob) for knob in actions]


def _apply_affinity(cpus: tuple[int, ...]) -> Outcome:
    try:
        set_affinity(cpus)
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


def _apply_allocator(value: Library | str, retained: int) -> Outcome:
    if isinstance(value, Library):
        return Outcome("allocator", False, f"{value.kind} must be preloaded: start with hfaccel-run")
    if native.arena is None:
        return Outcome("allocator", False, native.MISSING)
    # One arena for all threads, because only the main one grows beyond 64 MiB. The trim threshold comes
    # before the mmap threshold, which would freeze it at 128 KiB.
    settings = (
        ("arena_max", M_ARENA_MAX, 1),
        ("trim_threshold", M_TRIM_THRESHOLD, retained + SLACK),
        ("mmap_threshold", M_MMAP_THRESHOLD, retained),
    )
    refused = [name for name, option, number in settings if not native.arena.mallopt(option, number)]
    if refused:
        return Outcome("allocator", False, f"glibc refused {', '.join(refused)}")
    huge = _reserve_heap(retained)
    reason = f"glibc keeps up to {retained >> 20} MiB of freed memory, in one arena for all threads; {huge}"
    return Outcome("allocator", True, reason)


def _reserve_heap(retained: int) -> str:
    """Let the heap begin with room on huge pages, touched only as it is used; says how that went."""
    assert native.arena is not None
    try:
        native.arena.reserve_heap(retained - retained // 16)  # below the mmap threshold
    except OSError as error:
        return f"on ordinary pages ({os.strerror(error.errno or 0)})"
    # From now on the heap is cut back to what was reserved, and not to nothing.
    native.arena.mallopt(M_TOP_PAD, retained)
    return "on huge pages"


def _apply_threads(threads: int) -> Outcome:
    import torch

    if openmp.alone and threads > 1:
        return Outcome("threads", False, openmp.alone)
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

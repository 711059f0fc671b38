"""Changes to the running process: affinity, memory, malloc, torch's threads. Each says what it did."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from hfaccel import native
from hfaccel.apply import openmp
from hfaccel.host import Library, format_number_list
from hfaccel.outcome import Outcome
from hfaccel.plan import MemoryPolicy, Plan
from hfaccel.portable import affinity, set_affinity

# glibc's names and numbers (malloc.h).
M_ARENA_MAX, M_MMAP_THRESHOLD, M_TOP_PAD, M_TRIM_THRESHOLD = -8, -3, -2, -1
SLACK = 64 << 20  # bytes by which the heap outgrows what it may retain before it is cut back
GLIBC_DEFAULT = 128 << 10  # bytes: of its thresholds and of its top pad


class Step(NamedTuple):
    """What this process gets for one knob of a plan."""

    apply: Callable[[Any, Plan], Outcome]  # gets the knob's value, which is not None
    harmless: bool  # to the rest of the program: optimize() does it unasked
    why: str  # it is harmless, or left to configure()
    read: Callable[[], object] = lambda: None  # what `undo` needs of the state before
    undo: Callable[[Any], str] | None = None  # puts it back and says how; None: nothing can


def apply_plan(plan: Plan, done: Mapping[str, Outcome] = MappingProxyType({})) -> list[Outcome]:
    """Set this process up as planned, except for the knobs that are `done`. A refusal is a line in the
    answer, not an exception."""
    return [done[knob] if knob in done else _apply(knob, plan) for knob in STEPS]


_before: dict[str, object] = {}  # knob -> what was read before its first change


def undo() -> list[Outcome]:
    """Put back what `apply_plan` has changed, the last first. What nothing can put back is a line with the
    reason."""
    return [_undo(knob, _before.pop(knob)) for knob in reversed(STEPS) if knob in _before]


@contextlib.contextmanager
def applied_meanwhile(knob: str, plan: Plan) -> Iterator[Outcome]:
    """Apply one knob that can be undone, and undo it at the end."""
    before = STEPS[knob].read()
    outcome = STEPS[knob].apply(plan[knob].value, plan)
    try:
        yield outcome
    finally:
        if outcome.applied:
            _undo(knob, before)


def _apply(knob: str, plan: Plan) -> Outcome:
    step, choice = STEPS[knob], plan[knob]
    if choice.value is None:
        return Outcome(knob, False, choice.reason)
    before = step.read()
    outcome = step.apply(choice.value, plan)
    if outcome.applied:
        _before.setdefault(knob, before)
    return outcome


def _undo(knob: str, before: object) -> Outcome:
    put_back = STEPS[knob].undo
    if put_back is None:
        return Outcome(knob, False, "nothing can undo it in a running process")
    try:
        return Outcome(knob, True, put_back(before))
    except OSError as error:
        return Outcome(knob, False, f"it stays as it is: {error.strerror or error}")


def _apply_affinity(cpus: tuple[int, ...], plan: Plan) -> Outcome:
    try:
        set_affinity(cpus)
    except OSError as error:
        return Outcome("affinity", False, f"sched_setaffinity({list(cpus)}) failed: {error.strerror}")
    return Outcome("affinity", True, f"bound to CPUs {format_number_list(cpus)}")


def _undo_affinity(before: set[int]) -> str:
    set_affinity(before)
    return f"bound to CPUs {format_number_list(tuple(sorted(before)))} again; threads that run keep theirs"


def _apply_memory_policy(policy: MemoryPolicy, plan: Plan) -> Outcome:
    if native.arena is None:
        return Outcome("memory_policy", False, native.MISSING)
    try:
        native.arena.set_memory_policy(policy.mode, policy.nodes)
    except OSError as error:
        return Outcome("memory_policy", False, str(error.args[-1]))
    return Outcome("memory_policy", True, f"new pages: {policy}")


def _memory_policy() -> tuple[str, tuple[int, ...]]:
    if native.arena is None:
        return "default", ()
    try:
        mode, nodes = native.arena.memory_policy()
    except OSError:  # a container may forbid the question, and then it forbids the change, too
        return "default", ()
    return mode, tuple(nodes)


def _undo_memory_policy(before: tuple[str, tuple[int, ...]]) -> str:
    assert native.arena is not None
    native.arena.set_memory_policy(*before)
    return f"new pages: {before[0]}"


def _apply_allocator(value: Library | str, plan: Plan) -> Outcome:
    retained = plan["retained_memory"].value
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


def _undo_allocator(before: None) -> str:
    assert native.arena is not None
    native.arena.mallopt(M_ARENA_MAX, 0)
    for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_TOP_PAD):
        native.arena.mallopt(option, GLIBC_DEFAULT)
    native.arena.trim_heap()
    return (
        "glibc has its default thresholds, and freed memory is given back; threads may share an arena still"
    )


def _apply_threads(threads: int, plan: Plan) -> Outcome:
    import torch

    if openmp.alone and threads > 1:
        return Outcome("threads", False, openmp.alone)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return Outcome("threads", True, f"torch computes with {threads}")


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _undo_threads(before: int) -> str:
    import torch

    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
    return f"torch computes with {before}"


def _apply_interop_threads(threads: int, plan: Plan) -> Outcome:
    import torch

    if torch.get_num_interop_threads() == threads:
        return Outcome("interop_threads", True, f"torch has {threads}")
    try:
        torch.set_num_interop_threads(threads)
    except RuntimeError:  # torch allows it once, before the first of them has started
        has = torch.get_num_interop_threads()
        return Outcome("interop_threads", False, f"torch keeps {has}: they are in use already")
    return Outcome("interop_threads", True, f"torch has {threads}")


# In this order: malloc before torch is imported, because threads keep the arena that they begin with;
# affinity after that, because the import of torch may bind this thread somewhere else.
STEPS = {
    "allocator": Step(
        _apply_allocator,
        True,
        "it costs no more than the memory that may be retained, and changes no result",
        undo=_undo_allocator,
    ),
    "memory_policy": Step(
        _apply_memory_policy,
        False,
        "it would be that of all memory of this thread; weights are placed by it in any case",
        _memory_policy,
        _undo_memory_policy,
    ),
    "threads": Step(
        _apply_threads,
        True,
        "their number is a setting of torch's, and results do not depend on it",
        _threads,
        _undo_threads,
    ),
    "interop_threads": Step(
        _apply_interop_threads, False, "torch sets them once, and the program may want to do so later"
    ),
    "affinity": Step(
        _apply_affinity,
        False,
        "all threads and processes that the program starts would be bound, too",
        affinity,
        _undo_affinity,
    ),
}

"""Every knob is one row of KNOBS: its name, what it means, the variables by which a user may already
have set it, and the rule that chooses a value from the facts. Rules are pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hfaccel.errors import UsageError
from hfaccel.host import HostFacts, Library, parse_number_list, preload_problem
from hfaccel.plan.budget import cpu_budget
from hfaccel.plan.choice import Goal

Decision = tuple[Any, str]  # value, reason


class Knob(NamedTuple):
    name: str
    meaning: str  # one line for docs/knobs.md; says what the values are
    variables: tuple[str, ...]  # environment variables that set it already; the first that is not empty wins
    rule: Callable[[HostFacts, Goal], Decision]
    parse: Callable[[Any, HostFacts], Any]  # a user's value -> the knob's value, or UsageError


def _threads(facts: HostFacts, goal: Goal) -> Decision:
    budget = cpu_budget(facts)
    return budget.threads, budget.reason


def _parse_threads(value: Any, facts: HostFacts) -> int:
    try:
        threads = int(value)
    except (TypeError, ValueError, OverflowError):
        threads = 0
    if threads < 1 or (not isinstance(value, str) and threads != value):
        raise UsageError(f"`threads >= 1` must hold, but got {value!r}; leave it out to use every core")
    return threads


def _affinity(facts: HostFacts, goal: Goal) -> Decision:
    budget = cpu_budget(facts)
    mask = facts.limits.affinity
    if budget.limited_by_quota:
        return None, "under a CPU quota the scheduler places threads better than a fixed mask"
    if len(budget.cores) >= len(mask):
        return None, "the mask already holds one CPU of each core"
    return budget.cores, f"one CPU of each core: {len(mask) - len(budget.cores)} sibling CPUs left out"


def _parse_affinity(value: Any, facts: HostFacts) -> tuple[int, ...] | None:
    if value in (None, "off"):
        return None
    try:
        cpus = parse_number_list(value) if isinstance(value, str) else tuple(sorted(set(map(int, value))))
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"CPU numbers such as 0-3,8 are expected, but got {value!r}: {error}") from None
    outside = sorted(set(cpus) - set(facts.limits.affinity))
    if not cpus or outside:
        allowed = _number_list(facts.limits.affinity)
        raise UsageError(f"CPUs must be within the affinity mask {allowed}, but got {value!r}")
    return cpus


def _allocator(facts: HostFacts, goal: Goal) -> Decision:
    if goal.scope == "launch":
        if facts.allocators:
            best = facts.allocators[0]
            return best, f"{best.kind} keeps freed activations instead of returning every one of them"
        if facts.libc == "glibc":
            return "glibc", "no other allocator was found; glibc's thresholds keep freed activations"
        return None, f"no allocator was found, and the libc ({facts.libc}) has no such settings"
    preloaded = _preloaded_allocator(facts)
    if preloaded:
        return None, f"{preloaded} serves malloc already"
    if facts.libc == "glibc":
        return "glibc", "a running process cannot change its allocator, but glibc's thresholds"
    return None, f"a running process cannot change its allocator, and the libc is {facts.libc}"


def _preloaded_allocator(facts: HostFacts) -> str:
    for path in facts.mapped:
        name = path.rpartition("/")[2]
        if name.startswith(("libmimalloc", "libjemalloc", "libtcmalloc")):
            return name
    return ""


def _parse_allocator(value: Any, facts: HostFacts) -> Library | str | None:
    if value == "default":
        return None
    if value == "glibc":
        return "glibc"
    for library in facts.allocators:
        if value == library.kind:
            return library
    if isinstance(value, str) and "/" in value:
        problem = preload_problem(value)
        if problem:
            raise UsageError(
                f"a library to preload must be loadable, but {value} {problem}; "
                "use --memory-allocator auto or another path"
            )
        return Library("custom", value)
    found = ", ".join(library.kind for library in facts.allocators) or "none"
    raise UsageError(
        "the allocator must be default, glibc, a path, or one that is installed "
        f"(found here: {found}), but got {value!r}; pip install cmeel-mimalloc brings mimalloc"
    )


def _huge_pages(facts: HostFacts, goal: Goal) -> Decision:
    memory = facts.memory
    if memory.thp_disabled:
        return "off", "transparent huge pages are switched off for this process (PR_SET_THP_DISABLE)"
    if memory.thp in ("always", "madvise"):
        return "thp", f"the kernel gives huge pages on request (mode {memory.thp})"
    return "off", f"the kernel gives no transparent huge pages (mode {memory.thp})"


def _parse_huge_pages(value: Any, facts: HostFacts) -> str:
    if value in ("off", False):
        return "off"
    if value in ("thp", True):
        return "thp"
    raise UsageError(f"huge_pages must be auto, thp or off, but got {value!r}")


def _omp_wait_policy(facts: HostFacts, goal: Goal) -> Decision:
    if cpu_budget(facts).limited_by_quota:
        return "passive", "under a CPU quota a spinning thread uses up time that the others need"
    return None, "OpenMP's default spins for milliseconds and then sleeps, which suits dedicated cores"


def _parse_omp_wait_policy(value: Any, facts: HostFacts) -> str:
    if str(value).lower() in ("active", "passive"):
        return str(value).lower()
    raise UsageError(f"the OpenMP wait policy must be active or passive, but got {value!r}")


def _number_list(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers)) or "(empty)"


KNOBS = (
    Knob("threads", "compute threads, 1 or more", ("OMP_NUM_THREADS",), _threads, _parse_threads),
    Knob(
        "affinity",
        "CPU numbers that the process is bound to; none: left as it is",
        ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES"),
        _affinity,
        _parse_affinity,
    ),
    Knob(
        "allocator",
        "the library that serves malloc, or glibc with its thresholds raised; none: left as it is",
        ("LD_PRELOAD", "MALLOC_CONF", "GLIBC_TUNABLES"),
        _allocator,
        _parse_allocator,
    ),
    Knob(
        "huge_pages",
        "thp: weights and activations ask for transparent huge pages; off",
        ("THP_MEM_ALLOC_ENABLE",),
        _huge_pages,
        _parse_huge_pages,
    ),
    Knob(
        "omp_wait_policy",
        "active or passive waiting of OpenMP threads; none: left as it is",
        ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"),
        _omp_wait_policy,
        _parse_omp_wait_policy,
    ),
)

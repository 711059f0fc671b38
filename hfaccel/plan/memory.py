"""Rules for memory: the allocator, huge pages, caches that grow with shapes. Pure."""

from __future__ import annotations

from hfaccel.errors import UsageError
from hfaccel.host import HostFacts, Library, is_number, preload_problem, thp_mode, thp_problem
from hfaccel.plan.choice import Goal, Values
from hfaccel.plan.compute import Decision, Variables
from hfaccel.plan.placement import ranks

# By default mimalloc returns memory a second after it was freed, so that after each gap between two requests
# all pages of the activations fault in again. A minute avoids that; ten seconds where little may be retained.
MIMALLOC_DELAYS = (60_000, 10_000)  # milliseconds: from PLENTY on, and below
PLENTY = 1 << 30  # bytes that may be retained
JEMALLOC = {"MALLOC_CONF": "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"}


def allocator(facts: HostFacts, goal: Goal) -> Decision:
    if goal.scope == "launch":
        if facts.allocators:
            best = facts.allocators[0]
            return best, f"{best.kind} keeps freed activations instead of returning them to the system"
        if facts.libc == "glibc":
            return "glibc", "no other allocator was found; glibc's thresholds keep freed activations"
        return None, f"no allocator was found, and the libc ({facts.libc}) has no such settings"
    preloaded = preloaded_allocator(facts)
    if preloaded:
        return None, f"{preloaded} serves malloc already"
    if facts.libc == "glibc":
        return "glibc", "a running process cannot change its allocator, only glibc's thresholds"
    return None, f"a running process cannot change its allocator, and the libc is {facts.libc}"


def preloaded_allocator(facts: HostFacts) -> str:
    for path in facts.mapped:
        name = path.rpartition("/")[2]
        if name.startswith(("libmimalloc", "libjemalloc", "libtcmalloc")):
            return name
    return ""


def parse_allocator(value: object, facts: HostFacts) -> Library | str | None:
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


def export_allocator(value: Library | str, values: Values) -> Variables:
    """The allocator's own settings. They do not include the library, which is preloaded."""
    retained = values.get("retained_memory") or MAX_RETAINED
    if value == "glibc":
        # These belong together: the threshold alone would fix trimming at 128 KiB.
        sizes = f"glibc.malloc.mmap_threshold={retained}:glibc.malloc.trim_threshold={retained}"
        return {"GLIBC_TUNABLES": f"{sizes}:glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"}
    if isinstance(value, Library) and value.kind == "mimalloc":
        return {"MIMALLOC_PURGE_DELAY": str(MIMALLOC_DELAYS[retained < PLENTY])}
    return JEMALLOC if isinstance(value, Library) and value.kind == "jemalloc" else {}


# glibc takes thresholds as a C int: below 2 GiB.
MAX_RETAINED = 7 << 28  # bytes
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def retained_memory(facts: HostFacts, goal: Goal) -> Decision:
    usable = usable_memory(facts)
    if usable == 0:
        return MAX_RETAINED, "the memory of this host is unknown"
    processes = max(facts.limits.siblings, goal.slot.instances if goal.slot else 1, ranks(goal.environment))
    share = max(1 << 20, min(MAX_RETAINED, usable // 8 // processes))
    reason = f"an eighth of the {usable / 2**30:.1f} GiB that may be used, below 2 GiB"
    if processes > 1:
        reason = f"this process's share of {reason}: there are {processes} processes"
    return share, reason


def parse_retained_memory(value: object, facts: HostFacts) -> int:
    text = str(value).upper().removesuffix("B").removesuffix("I")
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1)
    if is_number(number) and 1 << 20 <= int(number) * unit <= MAX_RETAINED:
        return int(number) * unit
    raise UsageError(
        f"retained memory must be bytes, such as 512M, from 1M to {MAX_RETAINED >> 20}M, but got {value!r}"
    )


def usable_memory(facts: HostFacts) -> int:
    """Bytes that this process may use; 0 where unknown."""
    return min(filter(None, (facts.limits.memory_limit, facts.memory.total)), default=0)


HUGE_PAGES = "HFACCEL_HUGE_PAGES"


def huge_pages(facts: HostFacts, goal: Goal) -> Decision:
    memory = facts.memory
    if goal.environment.get(HUGE_PAGES) == "off":
        return "off", f"{HUGE_PAGES}=off is set"
    problem = thp_problem(memory)
    if problem:
        return "off", problem
    return "thp", f"the kernel gives huge pages on request (mode {thp_mode(memory)})"


def export_huge_pages(value: str, values: Values) -> Variables:
    """For the plan that hfaccel makes later, inside the program."""
    return {HUGE_PAGES: value} if value == "off" else {}


def parse_huge_pages(value: object, facts: HostFacts | None = None) -> str:
    if value in ("off", False):
        return "off"
    if value in ("thp", True):
        return "thp"
    raise UsageError(f"huge_pages must be auto, thp or off, but got {value!r}")


SMALL_MEMORY = 4 << 30  # bytes
SMALL_CACHE = 128  # primitives; oneDNN's default is 1024, each with its own machine code


def primitive_cache(facts: HostFacts, goal: Goal) -> Decision:
    usable = usable_memory(facts)
    if 0 < usable < SMALL_MEMORY:
        return SMALL_CACHE, f"{usable / 2**30:.1f} GiB of memory: every new shape would stay in the cache"
    return None, "oneDNN's default of 1024 shapes"


def parse_primitive_cache(value: object, facts: HostFacts) -> int:
    if is_number(str(value)):
        return int(str(value))
    raise UsageError(f"the primitive cache must hold 0 or more shapes, but got {value!r}")

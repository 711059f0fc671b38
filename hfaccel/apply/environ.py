"""A plan as environment variables, for a process that is yet to start. Pure; imports no torch.

What is set for the program only, and must not reach its children, is saved under another name first:
`hfaccel/_site/sitecustomize.py` puts the old values back as soon as the program's Python runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hfaccel.host import Library
from hfaccel.plan import Plan

SAVED = "HFACCEL_SAVED_"  # prefix of a variable that holds what the program's children shall see
SITE = str(Path(__file__).resolve().parent.parent / "_site")

# glibc's tunables have no upper bound of 2 GiB as mallopt has; 1 GiB is above any activation of a
# server's batch. All three belong together: setting the threshold alone freezes trimming at 128 KiB.
GLIBC_TUNABLES = (
    "glibc.malloc.mmap_threshold=1073741824:"
    "glibc.malloc.trim_threshold=1073741824:"
    "glibc.malloc.arena_max=1:"
    "glibc.malloc.hugetlb=1"
)
# Kept for ten seconds instead of one after being freed: otherwise the gap between two requests is
# enough for every page of the activations to be returned and faulted in again.
MIMALLOC = {"MIMALLOC_PURGE_DELAY": "10000"}
JEMALLOC = {"MALLOC_CONF": "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"}


def launch_environment(plan: Plan, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which the planned process starts.

    Variables that concern the program alone (LD_PRELOAD, the allocator's settings, PYTHONPATH) are
    accompanied by a saved copy; others (OMP_*) are inherited by children as they should be.
    """
    result = dict(environment)
    private = allocator_variables(plan, environment)
    private["PYTHONPATH"] = _prepend(SITE, environment.get("PYTHONPATH"))
    for name, value in private.items():
        # "=value", or nothing for a variable that is not set: an empty one is something else.
        result[SAVED + name] = f"={environment[name]}" if name in environment else ""
        result[name] = value
    result.update(openmp_variables(plan))
    return result


def allocator_variables(plan: Plan, environment: Mapping[str, str]) -> dict[str, str]:
    allocator = plan["allocator"].value
    if allocator == "glibc":
        return {"GLIBC_TUNABLES": GLIBC_TUNABLES}
    if not isinstance(allocator, Library):
        return {}
    settings = {"mimalloc": MIMALLOC, "jemalloc": JEMALLOC}.get(allocator.kind, {})
    unset = {name: value for name, value in settings.items() if name not in environment}
    return {"LD_PRELOAD": _prepend(allocator.path, environment.get("LD_PRELOAD")), **unset}


def openmp_variables(plan: Plan) -> dict[str, str]:
    variables: dict[str, str] = {}
    if plan["threads"].value is not None:
        variables["OMP_NUM_THREADS"] = str(plan["threads"].value)
    if plan["omp_wait_policy"].value is not None:
        variables["OMP_WAIT_POLICY"] = str(plan["omp_wait_policy"].value)
    return variables


def _prepend(first: str, rest: str | None) -> str:
    return f"{first}:{rest}" if rest else first

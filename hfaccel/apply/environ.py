"""A plan as environment variables, for a process that is yet to start. Pure; imports no torch.

What is set for the program only, and must not reach its children, is saved under another name first:
`hfaccel/_site/sitecustomize.py` puts the old values back as soon as the program's Python runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hfaccel.host import Library
from hfaccel.plan import KNOBS, Plan

SAVED = "HFACCEL_SAVED_"  # prefix of a variable that holds what the program's children shall see
SITE = str(Path(__file__).resolve().parent.parent / "_site")
# oneTBB, which OpenVINO computes with, loads hwloc with RTLD_DEEPBIND. hwloc then frees by glibc what libc's
# functions got from the preloaded malloc, and the program aborts (uxlfoundation/oneTBB#1636). This is the
# switch that oneTBB has for it, read when OpenVINO is first used: it must stay in the program's environment.
ONE_MALLOC = {"TBB_ENABLE_SANITIZERS": "1"}


def launch_environment(plan: Plan, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which the planned process starts.

    Variables that concern the program alone (LD_PRELOAD, the allocator's settings, PYTHONPATH) are
    accompanied by a saved copy; others (OMP_*) are inherited by children as they should be.
    """
    result = {**environment, **_variables(plan, environment, private=False)}
    if isinstance(plan["allocator"].value, Library):
        result.update({n: v for n, v in ONE_MALLOC.items() if not environment.get(n)})
    private = _variables(plan, environment, private=True)
    libraries = preloads(plan)
    if libraries:
        private["LD_PRELOAD"] = ":".join(filter(None, (*libraries, environment.get("LD_PRELOAD"))))
    private["PYTHONPATH"] = ":".join(filter(None, (SITE, environment.get("PYTHONPATH"))))
    for name, value in private.items():
        # "=value", or nothing for a variable that is not set: an empty one is something else.
        result[SAVED + name] = f"={environment[name]}" if name in environment else ""
        result[name] = value
    return result


def preloads(plan: Plan) -> list[str]:
    """Paths of the libraries that the plan preloads, in the order of the table."""
    return [choice.value.path for choice in plan.choices if isinstance(choice.value, Library)]


def _variables(plan: Plan, environment: Mapping[str, str], private: bool) -> dict[str, str]:
    """What the knobs export. A variable that is set already stays, unless the knob was asked for."""
    values = {choice.knob: choice.value for choice in plan.choices}
    knobs = {knob.name: knob for knob in KNOBS if knob.private == private}
    variables: dict[str, str] = {}
    for choice in plan.choices:
        if choice.knob not in knobs or choice.value is None:
            continue
        # Settings that go with a library are a default: who sets MALLOC_CONF knows better.
        replaces = choice.source == "user" and not isinstance(choice.value, Library)
        exported = knobs[choice.knob].export(choice.value, values)
        variables.update({n: v for n, v in exported.items() if replaces or not environment.get(n)})
    return variables

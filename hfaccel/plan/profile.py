"""A profile: settings that tuning found, the kind of host on which it found them, and how much they gained.

The file is TOML. A profile that was written by hand needs nothing but the table [knobs]:

    [knobs]              # names and values of docs/knobs.md; a knob that is not named is left to the rules
    threads = 4

    [instances]          # processes that hfaccel-run starts, and the cores of each
    count = 2
    cores = 4

    [model]              # what the model was measured with; nothing applies this
    backend = "torch"

    [host]               # only hosts that agree in every line are served
    cores = 8

    [evidence]           # for people: what was measured
    gain = 1.2
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from hfaccel.errors import UsageError, check_count, check_path
from hfaccel.host import HostFacts
from hfaccel.plan.budget import cpu_budget
from hfaccel.plan.make import check_knobs
from hfaccel.plan.placement import Request

FORMAT = 1
Scalar: TypeAlias = str | int | float | bool
Table: TypeAlias = Mapping[str, object]
NOTHING: Table = MappingProxyType({})


class Kind(NamedTuple):
    """What makes two hosts alike for a profile."""

    architecture: str
    processor: str  # the name of its cores where that is known: clouds mix models with the same cores
    kernel_set: str  # the best that can run; "" where none can
    cores: int  # that may be used
    nodes: int  # NUMA nodes of these
    quota: bool  # whether a CPU quota leaves less time than the cores have


class Profile(NamedTuple):
    """What a profile's file says."""

    knobs: Table = NOTHING
    instances: Table = NOTHING
    model: Table = NOTHING
    host: Table = NOTHING
    evidence: Table = NOTHING
    path: str = ""

    def request(self) -> Request:
        """The instances that hfaccel-run starts."""
        if not self.instances:
            return Request()
        return Request(
            instances=check_count("instances.count", self.instances.get("count", 1)),
            cores_per_instance=_cores(self.instances),
        )


def kind_of(facts: HostFacts) -> Kind:
    processor, budget = facts.processor, cpu_budget(facts)
    return Kind(
        processor.architecture,
        processor.codename or processor.model_name,
        next(iter(processor.kernel_sets), ""),
        budget.threads,
        len(facts.topology.nodes_of(budget.cores)) or 1,
        budget.limited_by_quota,
    )


def problem_here(profile: Profile, facts: HostFacts) -> str:
    """In what this host differs from the one that was tuned; "" where the profile fits."""
    here = kind_of(facts)._asdict()
    differing = [name for name, value in profile.host.items() if value != here[name]]
    return "; ".join(
        f"its {name} is {_shown(profile.host[name])}, here {_shown(here[name])}" for name in differing
    )


def check_host(profile: Profile, facts: HostFacts) -> None:
    """Raise UsageError unless the profile is for this kind of host."""
    problem = problem_here(profile, facts)
    if problem:
        raise UsageError(
            f"a profile must be for this kind of host, but of {profile.path!r} {problem}; "
            "run hfaccel tune here, or take the lines out of its table [host]"
        )


def _shown(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) or "unknown"


# Reading


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """The profile in this file. Raises UsageError for a file that is no profile."""
    name = os.fspath(check_path("a profile", path))
    try:
        text = Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"a profile must be a readable file, but {name!r} is not ({error.strerror})"
        ) from None
    except ValueError as error:  # bytes that are no text, or a name that no file has
        raise UsageError(f"a profile must be TOML, but {name!r} is not: {error}") from None
    return parse_profile(text, name)


def parse_profile(text: str, name: str = "") -> Profile:
    import tomllib  # most starts read no profile

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"a profile must be TOML, but {name!r} is not: {error}; docs/tune.md shows one"
        ) from None
    _check_format(document.pop("format", FORMAT), name)
    _check_keys(document, TABLES, "tables", name)
    for table, value in document.items():
        if not isinstance(value, dict):
            raise UsageError(
                f"[{table}] must be a table, but {name!r} holds {table} = {value!r}; write [{table}] above it"
            )
    profile = Profile(**document, path=name)
    _check(profile)
    return profile


TABLES = ("knobs", "instances", "model", "host", "evidence")


def _check(profile: Profile) -> None:
    check_knobs(profile.knobs, f"a setting of the profile {profile.path!r}")
    for table, known in (
        ("instances", ("count", "cores")),
        ("model", MODEL),
        ("host", tuple(Kind.__annotations__)),
    ):
        _check_keys(getattr(profile, table), known, f"lines of [{table}]", profile.path)
    profile.request()
    for name in ("backend", "precision"):
        value = profile.model.get(name, "")
        if not isinstance(value, str):
            raise UsageError(f"model.{name} must be a text, but got {value!r}")


MODEL = ("backend", "precision", "token_budget")


def _cores(instances: Table) -> int | None:
    cores = instances.get("cores")
    return None if cores is None else check_count("instances.cores", cores)


def _check_format(value: object, name: str) -> None:
    if value != FORMAT or isinstance(value, bool):
        raise UsageError(
            f"a profile must have the format {FORMAT}, but {name!r} has {value!r}; "
            "another version of hfaccel wrote it: run hfaccel tune again"
        )


def _check_keys(given: Table, known: tuple[str, ...], what: str, name: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UsageError(
            f"the {what} of a profile must be among {', '.join(known)}, but {name!r} has {', '.join(unknown)}"
        )


# Writing


def write_profile(profile: Profile, comments: tuple[str, ...] = ()) -> str:
    """The text of a profile's file, which `parse_profile` reads back."""
    lines = [f"# {_line(comment)}" for comment in comments]
    lines += [f"format = {FORMAT}"]
    for table in TABLES:
        values: Table = getattr(profile, table)
        if values:
            lines += ["", f"[{table}]", *(f"{name} = {_value(value)}" for name, value in values.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    import json

    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # A basic string of TOML is JSON's, except that DEL is escaped. Arguments of programs may be bytes.
    text = str(value).encode(errors="backslashreplace").decode()
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)

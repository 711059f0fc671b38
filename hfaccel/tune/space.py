"""The space: what can be varied on this host, as axes. A point names a value on each; a setting is what a
point means. Pure.

Conditions are part of the axes: an axis has only values that this host and the accuracy asked for allow, and
threads are given as a share of the room that an instance has, so that no point asks for more cores than there
are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

from hfaccel.bench.setting import Setting
from hfaccel.errors import UsageError
from hfaccel.host import HostFacts, Library, thp_problem
from hfaccel.plan import Goal, Plan, cpu_budget, make_plan

Value: TypeAlias = str | int | None
Point: TypeAlias = Mapping[str, Value]  # axis -> one of its values

# What a user who asks for an accuracy accepts: each result of these precisions is at least as accurate.
ACCURACIES = {
    "exact": ("fp32",),
    "bf16": ("fp32", "bf16"),
    "int8": ("fp32", "bf16", "int8-weight-only", "int8"),
    "int8-weight-only": ("fp32", "bf16", "int8-weight-only"),
    "int4-weight-only": ("fp32", "bf16", "int8-weight-only", "int4-weight-only"),
}
WEIGHT_ONLY = ("int8-weight-only", "int4-weight-only")
# In what each backend computes, as its module says.
PRECISIONS = {
    "torch": ("fp32", "bf16", "int8", *WEIGHT_ONLY),
    "eager": ("fp32", "bf16"),
    "inductor": ("fp32", "bf16"),
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "ipex": ("fp32", "bf16"),
}
BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # without any of these bfloat16 is slower than float32
SHARES = (1, 2, 4, 8)  # of an instance's room: all of it, a half ...
MOST_INSTANCES = 10  # values on the axis
BUDGETS = (None, 512, 1024, 2048, 4096, 8192)  # tokens of a batch


class Asked(NamedTuple):
    """What the user wants to be varied, and within what."""

    throughput: bool = False  # instances serve throughput alone
    accuracy: str = "exact"
    backends: tuple[str, ...] = ("torch",)  # none: a script, which chooses its model itself
    work: str = "shapes"  # a kind of hfaccel.bench.work
    fixed: Mapping[str, Value] = {}  # axis -> the only value


class Axis(NamedTuple):
    name: str
    values: tuple[Value, ...]
    ordered: bool = False  # neighbours are alike


@dataclass(frozen=True)
class Space:
    axes: tuple[Axis, ...]
    cores: int
    cores_of_node: int
    default_point: Point  # what hfaccel chooses untuned

    def setting(self, point: Point) -> Setting:
        backend, _, precision = str(point.get("engine", "eager fp32")).partition(" ")
        instances = _number(point["instances"])
        return Setting(
            backend=backend,
            precision=precision,
            threads=max(1, self.cores // instances // _number(point["share"])),
            instances=instances,
            allocator=str(point["allocator"]),
            omp_runtime=str(point["omp_runtime"]),
            wait_policy=_text(point["wait_policy"]),
            huge_pages=str(point["huge_pages"]),
            token_budget=None if (budget := point.get("token_budget")) is None else _number(budget),
        )

    @cached_property
    def settings(self) -> dict[Setting, Point]:
        """All settings, each with the first point that means it."""
        names = [axis.name for axis in self.axes]
        points = (
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(axis.values for axis in self.axes))
        )
        found: dict[Setting, Point] = {}
        for point in points:
            found.setdefault(self.setting(point), point)
        return found

    @property
    def default(self) -> Setting:
        return self.setting(self.default_point)

    def point(self, setting: Setting) -> Point:
        """Raises UsageError for a setting outside of the space."""
        if setting not in self.settings:
            raise UsageError(
                f"a setting must be within the space, but got {setting.label()}; "
                "leave out the options that exclude that"
            )
        return self.settings[setting]


def make_space(facts: HostFacts, asked: Asked) -> Space:
    """The axes that this host has for what is asked. Raises UsageError for what is none."""
    budget = cpu_budget(facts)
    cores, nodes = budget.threads, len(facts.topology.nodes_of(budget.cores)) or 1
    axes = tuple(
        _fixed(axis, asked.fixed)
        for axis in (
            *_engines(facts, asked),
            Axis("instances", _instances(cores) if asked.throughput else (1,), ordered=True),
            Axis("share", tuple(share for share in SHARES if share <= cores), ordered=True),
            Axis("allocator", _allocators(facts)),
            Axis("omp_runtime", _runtimes(facts)),
            Axis("wait_policy", _wait_policies(facts)),
            Axis("huge_pages", ("off",) if thp_problem(facts.memory) else ("auto", "off")),
            *([Axis("token_budget", BUDGETS, ordered=True)] if asked.work == "texts" else []),
        )
    )
    if unknown := sorted(set(asked.fixed) - {axis.name for axis in axes}):
        raise UsageError(
            f"an axis must be one of {', '.join(axis.name for axis in axes)}, but got {', '.join(unknown)}"
        )
    return Space(axes, cores, max(1, cores // nodes), default_point(facts, axes))


def default_point(facts: HostFacts, axes: Sequence[Axis]) -> Point:
    """What hfaccel-run and optimize() choose by themselves: the rules, in words of the axes."""
    plan = make_plan(facts, Goal("launch"))
    wanted = {
        "allocator": _kind(plan, "allocator"),
        "omp_runtime": _kind(plan, "omp_runtime"),
        "wait_policy": plan["omp_wait_policy"].value,
        "huge_pages": "off" if plan["huge_pages"].value == "off" else "auto",
    }
    first = {axis.name: axis.values[0] for axis in axes}
    return {axis.name: _of(axis, wanted.get(axis.name, first[axis.name])) for axis in axes}


def _of(axis: Axis, value: Value) -> Value:
    """The value where the axis has that, and else the first, which the user has fixed."""
    return value if value in axis.values else axis.values[0]


def _kind(plan: Plan, knob: str) -> str:
    value = plan[knob].value
    return value.kind if isinstance(value, Library) else value or "default"


def first_settings(space: Space, throughput: bool) -> list[Setting]:
    """The default, then what hfaccel's rules and measurements would try first."""
    axes = {axis.name: axis.values for axis in space.axes}
    fastest: Point = {"engine": engines[-1]} if (engines := axes.get("engine")) else {}
    tries: list[Point] = [fastest]
    if throughput:
        # benchmarks/scaling.py: instances of one core do most work; of several, where weights are large
        counts = axes["instances"]
        tries += [{**fastest, "instances": count} for count in (counts[-1], counts[len(counts) // 2])]
    points = ({**space.default_point, **one} for one in ({}, *tries))
    return list(dict.fromkeys(map(space.setting, points)))


# The values on each axis


def _engines(facts: HostFacts, asked: Asked) -> Iterator[Axis]:
    if asked.accuracy not in ACCURACIES:
        raise UsageError(f"accuracy must be one of {', '.join(ACCURACIES)}, but got {asked.accuracy!r}")
    usable = [
        precision
        for precision in ACCURACIES[asked.accuracy]
        if precision != "bf16" or any(map(facts.processor.has, BF16))
    ]
    pairs = [
        f"{backend} {precision}"
        for precision in usable
        if precision not in WEIGHT_ONLY or asked.work == "generation"
        for backend in asked.backends
        if precision in PRECISIONS.get(backend, ACCURACIES["int8"])
    ]
    if pairs:
        yield Axis("engine", tuple(pairs))


def _instances(cores: int) -> tuple[int, ...]:
    """Divisors of the cores; of many, those nearest to a geometric series."""
    divisors = [count for count in range(1, cores + 1) if cores % count == 0]
    while len(divisors) > MOST_INSTANCES:
        inner = range(1, len(divisors) - 1)
        closest = min(inner, key=lambda place: divisors[place + 1] / divisors[place - 1])
        divisors.pop(closest)
    return tuple(divisors)


def _allocators(facts: HostFacts) -> tuple[str, ...]:
    found = [library.kind for library in facts.allocators]
    own = ["glibc"] if facts.libc == "glibc" else []
    return tuple(dict.fromkeys([*found, *own, "default"]))


def _runtimes(facts: HostFacts) -> tuple[str, ...]:
    has_intel = any(library.kind == "intel" for library in facts.openmp)
    return ("default", "intel") if has_intel else ("default",)


def _wait_policies(facts: HostFacts) -> tuple[Value, ...]:
    """Under a quota, threads that spin use up the time of those that compute."""
    return ("passive",) if cpu_budget(facts).limited_by_quota else (None, "passive", "active")


def _fixed(axis: Axis, fixed: Mapping[str, Value]) -> Axis:
    if axis.name not in fixed:
        return axis
    if (value := fixed[axis.name]) not in axis.values:
        raise UsageError(
            f"{axis.name} must be one of {', '.join(map(str, axis.values))} here, but got {value!r}"
        )
    return axis._replace(values=(value,))


def _number(value: Value) -> int:
    assert isinstance(value, int)
    return value


def _text(value: Value) -> str | None:
    return None if value is None else str(value)

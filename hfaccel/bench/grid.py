"""From axes to cells: which works, which settings, in an order whose first cells tell most. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hfaccel.bench.setting import STOCK, Setting
from hfaccel.bench.work import Generation, Pipeline, Script, Shapes, Texts, Work
from hfaccel.errors import UsageError
from hfaccel.host import HostFacts
from hfaccel.plan import cpu_budget

BASELINE = Setting()
SETTLED_START = 15.0  # seconds in which a process starts, before one was seen


class Cell(NamedTuple):
    work: Work
    setting: Setting


@dataclass(frozen=True)
class Axes:
    """What varies. An empty axis has the values that `completed` gives."""

    batch_sizes: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    new_tokens: tuple[int, ...] = ()
    backends: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    instances: tuple[int, ...] = ()
    allocators: tuple[str, ...] = ()
    omp_runtimes: tuple[str, ...] = ()
    wait_policies: tuple[str | None, ...] = ()
    huge_pages: tuple[str, ...] = ()
    token_budgets: tuple[int | None, ...] = ()

    def to_dict(self) -> dict[str, list[object]]:
        return {name: list(values) for name, values in vars(self).items() if values}


TEXTS = Axes(precisions=("fp32", "bf16", "int8"))
QUICK = {
    "texts": TEXTS,
    "encoder": Axes(batch_sizes=(1, 8), lengths=(16, 128), precisions=("fp32", "bf16", "int8")),
    "decoder": Axes(
        batch_sizes=(1,), lengths=(64,), new_tokens=(16,), precisions=("bf16", "int4-weight-only")
    ),
}
FULL = {
    "texts": TEXTS,
    "encoder": Axes(batch_sizes=(1, 8, 32), lengths=(128, 16, 512), precisions=("fp32", "bf16", "int8")),
    "decoder": Axes(
        batch_sizes=(1,),
        lengths=(64, 512),
        new_tokens=(64,),
        precisions=("bf16", "int8", "int8-weight-only", "int4-weight-only"),
    ),
}
STARTED_BY_HFACCEL_RUN = Axes(
    backends=("torch",), instances=(1,), allocators=("auto",), omp_runtimes=("default",), huge_pages=("auto",)
)


def completed(axes: Axes, kind: str, quick: bool, longest: int | None) -> Axes:
    """The axes with values for those that the user left open. `longest`: tokens that the model can read."""
    usual = (QUICK if quick else FULL).get(kind, Axes(precisions=("fp32",)))
    full = _filled(_filled(axes, usual), STARTED_BY_HFACCEL_RUN)
    if longest is None or not full.lengths:
        return full
    if too_long := [length for length in axes.lengths if length > longest]:
        raise UsageError(f"`length <= {longest}` must hold for this model, but got {too_long[0]}")
    fitting = tuple(length for length in full.lengths if length <= longest)
    return replace(full, lengths=fitting or (longest,))


def _filled(axes: Axes, usual: Axes) -> Axes:
    return replace(axes, **{name: values for name, values in vars(usual).items() if not getattr(axes, name)})


def shapes(axes: Axes) -> list[Work]:
    return [Shapes(batch, length) for length in axes.lengths for batch in axes.batch_sizes]


def generations(axes: Axes) -> list[Work]:
    rows = itertools.product(axes.batch_sizes, axes.lengths, axes.new_tokens)
    return [Generation(length, tokens, batch) for batch, length, tokens in rows]


def text_works(name: str, count: int, task: str, axes: Axes) -> list[Work]:
    """The texts once for each batch size."""
    batches = axes.batch_sizes or (32,)
    if task:
        return [Pipeline(name, count, batch, task) for batch in batches]
    return [Texts(name, count, batch) for batch in batches]


# Fields of Setting and their axes; the last one varies first.
VARIED = (
    ("instances", "instances"),
    ("threads", "threads"),
    ("omp_runtime", "omp_runtimes"),
    ("wait_policy", "wait_policies"),
    ("huge_pages", "huge_pages"),
    ("allocator", "allocators"),
    ("token_budget", "token_budgets"),
    ("backend", "backends"),
    ("precision", "precisions"),
)


def settings(axes: Axes) -> list[Setting]:
    """Every combination, the baseline's own left out."""
    names = [name for name, _ in VARIED]
    rows = itertools.product(*(getattr(axes, axis) or (None,) for _, axis in VARIED))
    made = (Setting(**dict(zip(names, row, strict=True))) for row in rows)
    return [setting for setting in dict.fromkeys(made) if setting != BASELINE]


def cells(works: Sequence[Work], chosen: Sequence[Setting]) -> list[Cell]:
    """All cells: for each work the baseline and then the settings."""
    return [Cell(work, setting) for work in works for setting in (BASELINE, *chosen)]


def problem(cell: Cell, facts: HostFacts, backends: Mapping[str, str]) -> str:
    """Why a cell cannot be measured here, as far as can be told without a process; "" if it can."""
    checks = (_of_script(cell), _of_budget(cell), _of_stock(cell.setting), _of_libraries(cell.setting, facts))
    reasons = (*checks, _of_cores(cell.setting, facts), backends.get(cell.setting.backend, ""))
    return next(filter(None, reasons), "")


def _of_script(cell: Cell) -> str:
    setting = cell.setting
    if not isinstance(cell.work, Script):
        return ""
    if setting.backend not in (STOCK, "torch") or setting.precision != "fp32":
        return "a script chooses backend and precision itself"
    return ""


def _of_budget(cell: Cell) -> str:
    if cell.setting.token_budget is not None and type(cell.work) is not Texts:
        return "only texts that are measured without a pipeline are divided by a budget of tokens"
    return ""


def _of_stock(setting: Setting) -> str:
    if setting.backend == STOCK and setting.precision not in ("fp32", "bf16"):
        return f"plain transformers have no {setting.precision}"
    return ""


def _of_libraries(setting: Setting, facts: HostFacts) -> str:
    known = {library.kind for library in (*facts.allocators, *facts.openmp)}
    for name in (setting.allocator, setting.omp_runtime):
        if name not in ("default", "auto", "glibc") and name not in known:
            return f"{name} is not installed"
    return ""


def _of_cores(setting: Setting, facts: HostFacts) -> str:
    cores = cpu_budget(facts).threads
    wanted = max(setting.threads or 1, 1) * setting.instances
    return "" if wanted <= cores else f"it needs {wanted} cores, and {cores} can be used"


# Groups: cells that are measured together, beside one baseline


class Group(NamedTuple):
    work: Work
    settings: tuple[Setting, ...]  # without the baseline


def group_size(free_mib: float | None, side_mib: float, most: int = 3) -> int:
    """How many sides fit into memory beside the baseline, from 1 to `most`."""
    if free_mib is None:
        return most
    return max(1, min(most, int(0.8 * free_mib / side_mib) - 1))


def groups(work: Work, chosen: Sequence[Setting], size: int) -> Iterator[Group]:
    """Settings in groups whose processes, each instance one, are no more than `size` or are one setting's."""
    part: list[Setting] = []
    for setting in chosen:
        if part and sum(one.instances for one in part) + setting.instances > size:
            yield Group(work, tuple(part))
            part = []
        part.append(setting)
    if part:
        yield Group(work, tuple(part))


def estimate(count: Sequence[Group], start: float, sample: float, pairs: int) -> float:
    """Seconds that the groups take if `sample` seconds are one sample."""
    sides = [1 + sum(setting.instances for setting in group.settings) for group in count]
    return sum(side * (start + sample * (pairs + 1)) for side in sides)

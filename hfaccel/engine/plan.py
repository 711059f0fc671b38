"""A model plan: which modules of a model are replaced by what, and why, as data.

`hfaccel.engine.inspect` makes one, `apply_plan` carries one out without looking or trying. A plan of an
optimized model tells what is there now: `save`, `report` and copies read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from hfaccel.engine.replacements import REPLACEMENTS, ModuleReplacement, Settings
from hfaccel.outcome import Outcome, merge
from hfaccel.tables import render

PLAN = "_hfaccel_model_plan"  # attribute of a model
# In which replacements are applied; those of third parties come last.
ORDER = (
    *("linear", "layer", "padding", "convolution", "region"),
    *("embeddings", "stack", "shortcut", "outside"),
)


@dataclass(frozen=True)
class Step:
    """One replacement."""

    path: str  # of the module; "" is the model itself
    replacement: str  # a name of engine.replacements.REPLACEMENTS
    settings: Settings = field(default_factory=dict)
    subject: str = ""  # what a report calls it; "" where it tells nothing
    reason: str = ""
    # Times as fast as before, as measured here; None where it was not. No two measurements are equal.
    speedup: float | None = field(default=None, compare=False)
    error: float | None = None  # quantization error: of its result, relative; None where nothing is rounded

    def outcome(self) -> Outcome:
        return Outcome(self.subject, True, self.reason, gain=self.speedup)


@dataclass(frozen=True)
class ModelPlan:
    """Steps in the order in which they are carried out; and what else is to be said of the model: what was
    looked at and left as it was."""

    steps: tuple[Step, ...] = ()
    notes: tuple[Outcome, ...] = ()

    def outcomes(self) -> tuple[Outcome, ...]:
        return merge([*(step.outcome() for step in self.steps if step.subject), *self.notes])

    def to_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return asdict(self)

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> ModelPlan:
        """Raises TypeError or KeyError for what is no plan."""
        steps = tuple(Step(**step) for step in document["steps"])
        return ModelPlan(steps, tuple(Outcome(**note) for note in document["notes"]))

    def __str__(self) -> str:
        rows = [
            [step.path or "(the model)", step.replacement, _said(step.settings), _said_of(step)]
            for step in self.steps
        ]
        return render("model plan", ["module", "replacement", "settings", "why"], rows)


def apply_step(model: nn.Module, step: Step) -> None:
    """Raises ValueError where the model is not as the step says."""
    if step.replacement not in REPLACEMENTS:
        names = ", ".join(sorted(REPLACEMENTS))
        raise ValueError(f"a replacement must be one of {names}, but {step.path} has {step.replacement!r}")
    try:
        module = module_at(model, step.path)
        REPLACEMENTS[step.replacement].hfaccel_apply(module, step.settings, model.get_submodule)
    except (AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"{step.path or 'the model'}: {error}") from error


def module_at(model: nn.Module, path: str) -> Any:
    """Raises ValueError where the model has no such module."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ValueError(f"the model has no {path}") from None


def apply_steps(model: nn.Module, steps: Iterable[Step]) -> None:
    for step in steps:
        apply_step(model, step)


def plan_of(model: nn.Module) -> ModelPlan:
    """What is replaced in this model now; why, as far as that was noted when it was optimized."""
    noted: ModelPlan = model.__dict__.get(PLAN) or ModelPlan()
    return ModelPlan(tuple(steps_now(model, noted.steps)), noted.notes)


def keep(model: nn.Module, plan: ModelPlan) -> None:
    """Note the plan of this model, for `plan_of`."""
    model.__dict__[PLAN] = plan


def steps_now(model: nn.Module, noted: Sequence[Step]) -> list[Step]:
    """The noted steps that still are so, with their settings of now; then those that nobody noted."""
    now = {(step.path, step.replacement): step for step in _read(model)}
    known = [
        replace(step, settings=now.pop((step.path, step.replacement)).settings)
        for step in noted
        if (step.path, step.replacement) in now
    ]
    return [*known, *sorted(now.values(), key=_order)]


def _order(step: Step) -> int:
    return ORDER.index(step.replacement) if step.replacement in ORDER else len(ORDER)


def plan_problem(model: nn.Module) -> str:
    """Why `apply_plan` could not make this model again; "" where it can."""
    paths = {module: path for path, module in model.named_modules()}
    for module, path in paths.items():
        for mixin in _mixins(module):
            problem = mixin.hfaccel_problem(module, paths)
            if problem:
                return f"{path}: {problem}"
    return ""


def _read(model: nn.Module) -> Iterator[Step]:
    paths = {module: path for path, module in model.named_modules()}
    for module, path in paths.items():
        for mixin in _mixins(module):
            yield Step(path, mixin.hfaccel_name, mixin.hfaccel_settings(module, paths))


def _mixins(module: nn.Module) -> Iterator[type[ModuleReplacement]]:
    """The replacements of a module, the outermost first, but for those that others bring along."""
    cls: Any = type(module)
    while "hfaccel_original" in vars(cls):
        if cls.hfaccel_name:
            yield cls.__bases__[0]
        cls = cls.hfaccel_original


def _said(settings: Settings) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _said_of(step: Step) -> str:
    measured = [f"{step.speedup:.1f} times as fast"] if step.speedup else []
    lost = [f"loses {step.error:.1%}"] if step.error is not None else []
    return "; ".join([step.reason, *measured, *lost])

"""A model plan, as data: which modules of a model are replaced, by which replacements, and why.

`hfaccel.engine.inspect` makes a plan; `apply_plan` carries one out without trying anything. The plan of an
optimized model describes its present state: `save`, `report` and copies read it.
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
# The order in which replacements are applied; those of other packages come last.
ORDER = (
    *("linear", "experts", "layer", "padding", "convolution", "region"),
    *("embeddings", "stack", "shortcut", "token", "outside"),
)


@dataclass(frozen=True)
class Step:
    """One replacement."""

    path: str  # of the module; "" is the model itself
    replacement: str  # a name of engine.replacements.REPLACEMENTS
    settings: Settings = field(default_factory=dict)
    subject: str = ""  # its name in a report; "" if the report leaves it out
    reason: str = ""
    # How many times as fast as before, measured here; None if it was not measured. Not compared, because no
    # two measurements are equal.
    speedup: float | None = field(default=None, compare=False)
    error: float | None = None  # relative quantization error of the result; None if nothing is rounded

    def outcome(self) -> Outcome:
        return Outcome(self.subject, True, self.reason, gain=self.speedup)


@dataclass(frozen=True)
class ModelPlan:
    """Steps in the order in which they are carried out, and notes about parts that were left as they were."""

    steps: tuple[Step, ...] = ()
    notes: tuple[Outcome, ...] = ()

    def outcomes(self) -> tuple[Outcome, ...]:
        return merge([*(step.outcome() for step in self.steps if step.subject), *self.notes])

    def to_dict(self) -> dict[str, object]:
        """The plan as a dict that JSON can store."""
        return asdict(self)

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> ModelPlan:
        """The plan that `to_dict` returned. Raises TypeError or KeyError for any other document."""
        steps = tuple(Step(**step) for step in document["steps"])
        return ModelPlan(steps, tuple(Outcome(**note) for note in document["notes"]))

    def __str__(self) -> str:
        rows = [
            [step.path or "(the model)", step.replacement, _said(step.settings), _said_of(step)]
            for step in self.steps
        ]
        return render("model plan", ["module", "replacement", "settings", "why"], rows)


def apply_step(model: nn.Module, step: Step) -> None:
    """Carry out one step. Raises ValueError if the model is not as the step says."""
    if step.replacement not in REPLACEMENTS:
        names = ", ".join(sorted(REPLACEMENTS))
        raise ValueError(f"a replacement must be one of {names}, but {step.path} has {step.replacement!r}")
    try:
        module = module_at(model, step.path)
        REPLACEMENTS[step.replacement].hfaccel_apply(module, step.settings, model.get_submodule)
    except (AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"{step.path or 'the model'}: {error}") from error


def module_at(model: nn.Module, path: str) -> Any:
    """The module at this path. Raises ValueError if the model has none."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ValueError(f"the model has no {path}") from None


def apply_steps(model: nn.Module, steps: Iterable[Step]) -> None:
    for step in steps:
        apply_step(model, step)


def plan_of(model: nn.Module) -> ModelPlan:
    """The present replacements of this model, with the reasons that were noted when it was optimized."""
    noted: ModelPlan = model.__dict__.get(PLAN) or ModelPlan()
    return ModelPlan(tuple(steps_now(model, noted.steps)), noted.notes)


def keep(model: nn.Module, plan: ModelPlan) -> None:
    """Keep the plan of this model for `plan_of`."""
    model.__dict__[PLAN] = plan


def steps_now(model: nn.Module, noted: Sequence[Step]) -> list[Step]:
    """The noted steps that still hold, with their present settings; then replacements that were not noted."""
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
    """Why `apply_plan` could not make this model again; "" if it can."""
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
    """The replacements of a module, the outermost first, without those that another replacement adds."""
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

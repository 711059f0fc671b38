"""What was done to a model, kept on the model, and report(), which tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hfaccel import memory, upstream
from hfaccel.apply.verify import Finding, verify
from hfaccel.backends import BACKENDS, by_name
from hfaccel.configuration import Configuration, current
from hfaccel.errors import HfaccelError, ModelError
from hfaccel.outcome import Outcome
from hfaccel.precision import Precision
from hfaccel.tables import render

KEY = "_hfaccel"  # attribute of an optimized model that holds its Record


@dataclass(frozen=True)
class Record:
    """What optimize() did to a model; travels with it through deepcopy and pickle."""

    backend: str  # "" where the model was left as it is
    outcomes: tuple[Outcome, ...]
    precision: Precision | None = None  # as asked for
    unpad: bool | str = "auto"  # as asked for
    kv_cache: str = "auto"  # as asked for


@dataclass(frozen=True)
class Report:
    """What was applied to a model and its process, what was not, why, and what really took effect."""

    model: str
    backend: str
    outcomes: tuple[Outcome, ...]
    configuration: Configuration
    verified: tuple[Finding, ...]
    stock_calls: dict[str, int]  # reason -> calls of a layer or pipeline that took the model's own path
    padded_calls: dict[str, int]  # reason -> calls of the model that had padding, and computed it

    def to_dict(self) -> dict[str, object]:
        return {
            "model": self.model,
            "backend": self.backend,
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
            "configuration": self.configuration.to_dict(),
            "verified": [finding.to_dict() for finding in self.verified],
            "stock_calls": self.stock_calls,
            "padded_calls": self.padded_calls,
        }

    def __str__(self) -> str:
        done = [
            [
                "yes" if line.applied else "no",
                f"{line.subject} x {line.count}" if line.count > 1 else line.subject,
                f"{line.gain:.1f}" if line.gain else "",
                line.reason,
            ]
            for line in (*self.outcomes, *self.configuration.outcomes, *self.configuration.hooks)
        ]
        chosen = [[c.knob, c.value, c.source, c.reason] for c in self.configuration.plan.choices]
        found = [[f.subject, f.value, f.source] for f in self.verified]
        tables = [
            render(
                f"{self.model}, backend {self.backend or 'none'}",
                ["applied", "what", "times faster", "why"],
                done,
            ),
            render("choices", ["knob", "value", "source", "reason"], chosen),
            render("verified", ["what", "value", "read from"], found),
        ]
        if self.stock_calls:
            rows = [[count, reason] for reason, count in self.stock_calls.items()]
            tables.append(render("calls on the stock path", ["calls", "reason"], rows))
        if self.padded_calls:
            rows = [[count, reason] for reason, count in self.padded_calls.items()]
            tables.append(render("calls that computed padding", ["calls", "reason"], rows))
        return "\n".join(tables)


def report(model_or_pipeline: object) -> Report:
    """What optimize() did to this model and why; prints as tables, `to_dict()` for programs.

    Raises ModelError for an object that was not optimized.
    """
    model = model_of(model_or_pipeline)
    record = record_of(model)
    if record is None:
        raise ModelError(
            "report() takes what optimize() returned, but this "
            f"{type(model).__name__} was not optimized; call hfaccel.optimize(model) first"
        )
    shared = memory.shared(model)
    stock_calls = by_name(record.backend).stock_calls(model) if record.backend else {}
    outcomes = (*record.outcomes, *([shared.outcome] if shared else []), *upstream.outcomes())
    if not isinstance(model_or_pipeline, nn.Module):
        from hfaccel.pipelines import wrap

        outcomes = (*outcomes, wrap.outcome(model_or_pipeline))
        stock_calls = stock_calls | wrap.stock_calls(model_or_pipeline)
    return Report(
        model=type(model).__name__,
        backend=record.backend,
        outcomes=outcomes,
        configuration=current(),
        verified=(*verify(), *_weights_on_huge_pages(model)),
        stock_calls=stock_calls,
        padded_calls=by_name(record.backend).padded_calls(model) if record.backend else {},
    )


def model_of(candidate: object) -> Any:
    """The model itself, or that of a pipeline. Models of other engines are no torch modules."""
    if isinstance(candidate, nn.Module) or engine_of(candidate):
        return candidate
    model = getattr(candidate, "model", None)
    if callable(candidate) and (isinstance(model, nn.Module) or engine_of(model)):
        return model
    raise ModelError(
        "a torch.nn.Module or a transformers pipeline is expected, but got "
        f"{type(candidate).__name__}; pass what AutoModel.from_pretrained returned"
    )


def engine_of(candidate: object) -> str:
    """The backend whose engine runs this object already; "" for torch modules and others."""
    return next((backend.name for backend in BACKENDS if backend.runs(candidate)), "")


def mark(model: nn.Module, record: Record) -> None:
    """Let report() and restore() know what was done to this model."""
    model.__dict__[KEY] = record


def record_of(model: nn.Module) -> Record | None:
    """What was done to this model; None where nothing was tried."""
    record = model.__dict__.get(KEY)
    return record if isinstance(record, Record) else None


def _weights_on_huge_pages(model: nn.Module) -> tuple[Finding, ...]:
    if not isinstance(model, nn.Module):
        return ()  # another engine's model keeps its weights to itself
    try:
        share = memory.coverage(model)
    except (HfaccelError, OSError) as error:
        return (Finding("weights on huge pages", "unknown", str(error)),)
    return (Finding("weights on huge pages", f"{share:.0%}", "/proc/self/smaps"),)

"""A model -> the same model, run by an engine; and back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hfaccel.export.engine import Engine, Job
from hfaccel.export.fingerprint import fingerprint
from hfaccel.export.interface import Sample, complete, default_sample, interface_of, stock_forward
from hfaccel.export.running import Running, running
from hfaccel.export.trial import TOLERANCE, trial, varied
from hfaccel.outcome import Outcome
from hfaccel.precision import Precision


def attach(
    model: nn.Module, engine: Engine, precision: Precision, given: Sequence[Sample] = ()
) -> tuple[Outcome, ...]:
    """Open a session of the model and let it run the model's forward.

    `given` are inputs of the user's; the first is the example to export with. The model stays as it is,
    and the outcome says why, where any step fails or results differ by more than the tolerance.
    """
    try:
        samples = [complete(model, sample) for sample in (given or [default_sample(model)])]
        interface = interface_of(model, samples[0])
        job = Job(interface, precision, [list(sample.values()) for sample in samples], fingerprint(model))
        forward = Running(model, engine, job)
        forward.prepare()
        error = trial(stock_forward(model), forward, varied(samples[0], interface.dynamic))
    except Exception as problem:  # noqa: BLE001 (exporters raise anything, and the model runs without them)
        text = f"{type(problem).__name__}: {problem}".strip()[:400]
        return (Outcome("model", False, f"could not be exported ({text})"),)
    if forward.calls:
        return (Outcome("model", False, f"on a trial {next(iter(forward.calls))}"),)
    if error > TOLERANCE[precision]:
        reason = f"a trial differed by {error:.1e} where {TOLERANCE[precision]:.0e} is allowed"
        return (Outcome("model", False, reason),)
    model.__dict__["forward"] = forward
    done = f"run by {engine.name}, {precision.short}; a trial differed by {error:.1e}"
    return (Outcome("model", True, done), job.opened)


def detach(model: nn.Module) -> None:
    """Undo `attach`. Nothing else was changed."""
    if running(model) is not None:
        del model.__dict__["forward"]

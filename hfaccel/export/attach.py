"""A model -> the same model, run by an engine; and back."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import nn

from hfaccel import engine as packed
from hfaccel.export.cache import Cache
from hfaccel.export.engine import Engine, Session
from hfaccel.export.fingerprint import fingerprint, key
from hfaccel.export.interface import (
    Flat,
    Interface,
    Sample,
    complete,
    default_sample,
    interface_of,
    stock_forward,
)
from hfaccel.export.running import Running, running
from hfaccel.export.trial import TOLERANCE, trial, varied
from hfaccel.outcome import Outcome


def attach(
    model: nn.Module, engine: Engine, precision: str, given: Sequence[Sample] = (), cache: Cache | None = None
) -> tuple[Outcome, ...]:
    """Export the model unless that was done before, and let the engine run its forward.

    `given` are inputs of the user's; the first is the example to export with. The model stays as it is,
    and the outcome says why, where any step fails or results differ by more than the tolerance.
    """
    try:
        samples = [complete(model, sample) for sample in (given or [default_sample(model)])]
        interface = interface_of(model, samples[0])
        export = Export(engine, interface, precision, samples, fingerprint(model), cache)
        forward = Running(model, interface, export.weights, export)
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
    return (
        Outcome("model", True, f"run by {engine.name}, {precision}; a trial differed by {error:.1e}"),
        export.kept,
    )


def detach(model: nn.Module) -> None:
    """Undo `attach`. Nothing else was changed."""
    if running(model) is not None:
        del model.__dict__["forward"]


class Export:
    """Opens sessions of a model, from the cache or by a new export. Pickled with the model."""

    def __init__(
        self,
        engine: Engine,
        interface: Interface,
        precision: str,
        samples: Sequence[Sample],
        weights: str,
        cache: Cache | None,
    ) -> None:
        self.engine, self.interface, self.precision = engine, interface, precision
        self.samples = [list(sample.values()) for sample in samples]
        self.weights, self.cache = weights, cache
        self.kept = Outcome("export", False, "not made yet")

    def __call__(self, model: nn.Module) -> Session:
        name = key(
            self.weights,
            engine=self.engine.name,
            versions={
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                **self.engine.versions(),
            },
            model=[type(model).__module__, type(model).__qualname__, model.config.to_json_string()],
            interface=self.interface.to_key(),
            precision=self.precision,
            samples=_calibration(self.samples) if self.precision == "int8" else "",
        )
        with (self.cache or Cache()).entry(name, partial(self._write, model)) as entry:
            reason = entry.problem or ("found in the cache" if entry.found else "kept in the cache")
            self.kept = Outcome("export", not entry.problem, reason)
            return self.engine.load(entry.path, self.precision)

    def _write(self, model: nn.Module, folder: Path) -> None:
        flat = Flat(_unpacked(model), tuple(self.interface.inputs), self.interface.outputs).eval()
        self.engine.write(flat, self.interface, self.precision, self.samples, folder)


def _unpacked(model: nn.Module) -> nn.Module:
    """The model in ordinary layout: a copy where hfaccel's own engine has packed weights that it shares."""
    if not any(type(module).__module__.startswith(packed.__name__) for module in model.modules()):
        return model
    other = copy.deepcopy(model)
    packed.restore(other)
    return other


def _calibration(samples: Sequence[Sequence[torch.Tensor]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        for tensor in sample:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()

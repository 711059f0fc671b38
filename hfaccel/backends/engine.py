"""The backend `torch`: hfaccel's own engine, in the model's own modules."""

from __future__ import annotations

from torch import nn

from hfaccel import engine
from hfaccel.backends.base import Backend, Options
from hfaccel.outcome import Outcome


class TorchBackend(Backend):
    name = "torch"

    def available(self) -> str:
        return engine.kernels_problem()

    def supports(self, model: nn.Module) -> str:
        if not engine.is_quantized(model) and not any(
            engine.is_linear(module) or isinstance(module, nn.Conv1d | nn.Conv2d)
            for module in model.modules()
        ):
            return "the model has no linear layer and no convolution"
        return engine.checkpoint_problem(model)

    def transform(self, model: nn.Module, options: Options) -> tuple[Outcome, ...]:
        kind = _wanted(options)
        problem = "" if kind is None else engine.widening_problem(kind)
        told = "" if kind is None else problem or engine.widening_gain(kind)
        outcomes = [Outcome("kernels", True, f"those for {engine.set_in_use()}")]
        if kind is not None and told:
            outcomes.append(Outcome(f"precision {kind.label}", not problem, told))
        done = engine.transform(
            model,
            kind=None if problem else kind,
            huge_pages=options.huge_pages,
            unpad=options.unpad,
            samples=options.samples,
            kv_cache="" if options.kv_cache == "auto" else options.kv_cache,
        )
        return (*outcomes, *done)

    def restore(self, model: nn.Module) -> None:
        engine.restore(model)

    def stock_calls(self, model: nn.Module) -> dict[str, int]:
        return dict(engine.stock_calls(model))

    def padded_calls(self, model: nn.Module) -> dict[str, int]:
        return dict(engine.padded_calls(model))


def _wanted(options: Options) -> engine.Kind | None:
    return engine.Kind.of(options.precision.value) if options.precision else None

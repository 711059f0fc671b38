"""The backend `torch`: hfaccel's own engine on torch's oneDNN operators."""

from __future__ import annotations

import torch
from torch import nn

from hfaccel import engine
from hfaccel.backends.base import Backend, Options
from hfaccel.outcome import Outcome


class TorchBackend(Backend):
    name = "torch"

    def available(self) -> str:
        if not torch.cpu._is_avx512_supported():
            return "the CPU has no AVX-512; weights are packed for its GEMM only"
        return engine.packing_problem()

    def supports(self, model: nn.Module) -> str:
        if not any(isinstance(module, nn.Linear) for module in model.modules()):
            return "the model has no linear layer"
        return ""

    def transform(self, model: nn.Module, options: Options) -> tuple[Outcome, ...]:
        return engine.transform(model, huge_pages=options.huge_pages)

    def restore(self, model: nn.Module) -> None:
        engine.restore(model)

    def stock_calls(self, model: nn.Module) -> dict[str, int]:
        return dict(engine.stock_calls(model))

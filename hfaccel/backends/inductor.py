"""The backend `inductor`: torch.compile with frozen weights and dynamic shapes.

Supports fp32 and bf16, any model whose forward torch.compile takes as one graph. It compiles with a C++
compiler at run time: half a minute for the first call, and once more where a size becomes 1. More than
RECOMPILATIONS variants are not compiled; the model's own code runs from there on.
"""

from __future__ import annotations

import inspect
import shutil
from collections import Counter
from typing import Any

import torch
from torch import nn

from hfaccel import export
from hfaccel.backends.base import Backend, Options, precision_of
from hfaccel.outcome import Outcome

RECOMPILATIONS = 8


class InductorBackend(Backend):
    name = "inductor"
    preparation = 60.0

    def available(self) -> str:
        if not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
            return "torch.compile needs a C++ compiler at run time, and there is none"
        return ""

    def supports(self, model: nn.Module) -> str:
        return export.export_problem(model)

    def transform(self, model: nn.Module, options: Options) -> tuple[Outcome, ...]:
        precision = precision_of(options)
        problem = self.available() or self.supports(model)
        if precision == "int8":
            problem = problem or "torch.compile has no int8 of its own; use backend='torch'"
        if problem:
            return (Outcome("model", False, problem),)
        return export.attach(model, InductorEngine(), precision, options.samples)

    def restore(self, model: nn.Module) -> None:
        export.detach(model)

    def stock_calls(self, model: nn.Module) -> dict[str, int]:
        forward = export.running(model)
        return dict(forward.calls) if forward else {}

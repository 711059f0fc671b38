"""The backend `inductor`: torch.compile with frozen weights and dynamic shapes.

Supports fp32 and bf16, any model whose forward torch.compile takes as one graph. It compiles with a C++
compiler at run time: half a minute for the first call, and once more where a size becomes 1. More than
RECOMPILATIONS variants are not compiled; the model's own code runs from there on.
"""

from __future__ import annotations

import inspect
import shutil
from typing import Any

import torch
from torch import nn

from hfaccel import export
from hfaccel.backends.base import Options, SessionBackend
from hfaccel.outcome import Outcome
from hfaccel.precision import Precision

RECOMPILATIONS = 8


class InductorEngine(export.Engine):
    name = "inductor"

    def open(self, model: nn.Module, job: export.Job) -> export.Session:
        flat = export.Flat(export.unpacked(model), tuple(job.interface.inputs), job.interface.outputs)
        job.opened = Outcome("compilation", True, "in this process; torch keeps what it compiled on disk")
        return InductorSession(flat.eval(), job.precision)


class InductorSession(export.Session):
    """Weights become constants of the compiled code: the model is watched for changes, as with files."""

    def __init__(self, flat: export.Flat, precision: Precision) -> None:
        self.mixed = precision is Precision.BFLOAT16
        known = inspect.signature(torch.compile).parameters
        bounds: dict[str, Any] = {"recompile_limit": RECOMPILATIONS, "isolate_recompiles": True}
        bounds = {name: value for name, value in bounds.items() if name in known}  # torch 2.10: 8 for all
        self.compiled = torch.compile(flat, dynamic=True, fullgraph=True, **bounds)

    def run(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        from torch._inductor import config

        with config.patch(freezing=True), torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            return [tensor.float() for tensor in self.compiled(*inputs.values())]


class InductorBackend(SessionBackend):
    name = "inductor"
    engine = InductorEngine()
    preparation = 60.0

    def available(self) -> str:
        if not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
            return "torch.compile needs a C++ compiler at run time, and there is none"
        return ""

    def lacks(self, options: Options) -> str:
        if options.precision is Precision.INT8:
            return "torch.compile has no int8 of its own; use backend='torch'"
        return ""

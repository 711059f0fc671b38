"""The backend `ipex`: intel-extension-for-pytorch 2.8 with torch 2.8, for those who cannot leave it yet.

The extension is retired: 2.8 is its last release and its repository is archived since March 2026. It works
with torch 2.8 alone and is offered for comparisons; everything that it did for BERT-like models the
backend `torch` does on current versions. `make test-ipex` tests it in an environment of its own.
Supports fp32 and bf16, any model that its optimize() takes.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from hfaccel import export
from hfaccel.backends.base import Options, SessionBackend, missing, version
from hfaccel.outcome import Outcome
from hfaccel.precision import Precision

PACKAGE, SERIES = "intel_extension_for_pytorch", "2.8"
RETIRED = "intel-extension-for-pytorch is retired (2.8 was the last release); use backend='torch'"


class IpexEngine(export.Engine):
    name = "ipex"

    def open(self, model: nn.Module, job: export.Job) -> export.Session:
        return IpexSession(model, job)


class IpexSession(export.Session):
    """A copy of the model, since ipex.optimize changes what state dicts hold."""

    def __init__(self, model: nn.Module, job: export.Job) -> None:
        import intel_extension_for_pytorch as ipex

        self.mixed = job.precision is Precision.BFLOAT16
        other = copy.deepcopy(export.unpacked(model))
        other.__dict__.pop("forward", None)
        # Folding batch norms traces with torch.fx, which meanwhile breaks every module in other threads.
        other = ipex.optimize(
            other,
            dtype=torch.bfloat16 if self.mixed else torch.float32,
            conv_bn_folding=False,
            linear_bn_folding=False,
        )
        self.flat = export.Flat(other, tuple(job.interface.inputs), job.interface.outputs).eval()
        job.opened = Outcome("engine", True, f"{PACKAGE} {version(PACKAGE)}; {RETIRED}")

    def run(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            return [tensor.float() for tensor in self.flat(*inputs.values())]


class IpexBackend(SessionBackend):
    name = "ipex"
    engine = IpexEngine()
    preparation = 5.0

    def available(self) -> str:
        if not torch.__version__.startswith(f"{SERIES}."):
            return f"it works with torch {SERIES} alone, and this is torch {torch.__version__}; {RETIRED}"
        return f"it is not installed; {RETIRED}" if missing((PACKAGE,), "") else ""

    def lacks(self, options: Options) -> str:
        if options.precision is Precision.INT8:
            return "this backend has no int8; use backend='torch'"
        return ""

"""The backend `onnxruntime`: torch's own exporter, fusions for transformers, ONNX Runtime.

Supports encoders in fp32 and int8 (dynamic quantization, no calibration). ONNX Runtime has no bf16 kernels
for CPUs. Objects of optimum-onnx (ORTModel) run ONNX Runtime already and are accepted as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hfaccel import export
from hfaccel.backends.base import Backend, Options, missing, precision_of, version
from hfaccel.outcome import Outcome

PACKAGES = ("onnxruntime", "onnx", "onnxscript")
MODEL, QUANTIZED = "model.onnx", "int8.onnx"


class OnnxruntimeBackend(Backend):
    name = "onnxruntime"
    preparation = 15.0

    def available(self) -> str:
        return missing(PACKAGES, "onnxruntime")

    def supports(self, model: nn.Module) -> str:
        return export.export_problem(model)

    def transform(self, model: nn.Module, options: Options) -> tuple[Outcome, ...]:
        precision = precision_of(options)
        problem = self.available() or self.supports(model)
        if precision == "bf16":
            problem = (
                problem or "ONNX Runtime has no bf16 kernels for CPUs; use backend='openvino' or 'torch'"
            )
        if problem:
            return (Outcome("model", False, problem),)
        return export.attach(model, OnnxruntimeEngine(), precision, options.samples)

    def restore(self, model: nn.Module) -> None:
        export.detach(model)

    def stock_calls(self, model: nn.Module) -> dict[str, int]:
        forward = export.running(model)
        return dict(forward.calls) if forward else {}

    def runs(self, candidate: Any) -> bool:
        return any(base.__module__.startswith("optimum.onnxruntime") for base in type(candidate).__mro__)


class OnnxruntimeEngine(export.Engine):
    name = "onnxruntime"

    def versions(self) -> dict[str, str]:
        return {package: version(package) for package in PACKAGES}

    def write(
        self,
        model: export.Flat,
        interface: export.Interface,
        precision: str,
        samples: Sequence[Sequence[torch.Tensor]],
        folder: Path,
    ) -> None:
        import onnx_ir
        from onnxscript.rewriter.ort_fusions import optimize_for_ort

        with export.quiet():
            program = torch.onnx.export(
                model,
                tuple(samples[0]),
                input_names=list(interface.inputs),
                output_names=list(interface.outputs),
                dynamic_shapes=(_dynamic(interface),),
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            optimize_for_ort(program.model)
        onnx_ir.save(program.model, folder / MODEL, external_data="weights.bin")
        if precision == "int8":
            _quantize(folder)

    def load(self, folder: Path, precision: str) -> export.Session:
        return OnnxruntimeSession(folder / (QUANTIZED if precision == "int8" else MODEL))


class OnnxruntimeSession(export.Session):
    def __init__(self, path: Path) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]

    def run(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        feed = {name: inputs[name].numpy() for name in self.names}
        return [torch.from_numpy(array) for array in self.session.run(None, feed)]


def _dynamic(interface: export.Interface) -> tuple[dict[int, Any], ...]:
    names = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    return tuple({number: names[number] for number in numbers} for numbers in interface.dynamic.values())


def _quantize(folder: Path) -> None:
    """Weights to int8 by output channel; activations at run time, by tensor."""
    from onnxruntime.quantization import quantize_dynamic

    reduced = not torch.cpu._is_vnni_supported()  # u8 times s8 saturates without VNNI
    with export.quiet():
        quantize_dynamic(
            folder / MODEL,
            folder / QUANTIZED,
            per_channel=True,
            reduce_range=reduced,
            use_external_data_format=True,
        )
    for file in (MODEL, "weights.bin"):
        (folder / file).unlink(missing_ok=True)

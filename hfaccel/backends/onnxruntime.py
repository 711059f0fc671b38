"""The backend `onnxruntime`: torch's own exporter, fusions for transformers, ONNX Runtime.

Supports encoders in fp32 and int8 (dynamic quantization, no calibration). ONNX Runtime has no bf16 kernels
for CPUs. Objects of optimum-onnx (ORTModel) run ONNX Runtime already and are accepted as they are.
"""

from __future__ import annotations

from pathlib import Path

import torch

from hfaccel import export
from hfaccel.backends.base import Options, SessionBackend, missing, version
from hfaccel.host import read_host
from hfaccel.precision import Precision

PACKAGES = ("onnxruntime", "onnx", "onnxscript")
MODEL, QUANTIZED = "model.onnx", "int8.onnx"


class OnnxruntimeEngine(export.ExportingEngine):
    name = "onnxruntime"

    def versions(self) -> dict[str, str]:
        return {package: version(package) for package in PACKAGES}

    def write(self, model: export.Flat, job: export.Job, folder: Path) -> None:
        import onnx_ir
        from onnxscript.rewriter.ort_fusions import optimize_for_ort

        with export.quiet():
            program = torch.onnx.export(
                model,
                tuple(job.samples[0]),
                input_names=list(job.interface.inputs),
                output_names=list(job.interface.outputs),
                dynamic_shapes=(_dynamic(job.interface),),
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            optimize_for_ort(program.model)
        onnx_ir.save(program.model, folder / MODEL, external_data="weights.bin")
        if job.precision is Precision.INT8:
            _quantize(folder)

    def load(self, folder: Path, precision: Precision) -> export.Session:
        return OnnxruntimeSession(folder / (QUANTIZED if precision is Precision.INT8 else MODEL))


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


def _dynamic(interface: export.Interface) -> tuple[dict[int, torch.export.Dim], ...]:
    names = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    return tuple({number: names[number] for number in numbers} for numbers in interface.dynamic.values())


def _quantize(folder: Path) -> None:
    """Weights to int8 by output channel; activations at run time, by tensor."""
    from onnxruntime.quantization import quantize_dynamic

    reduced = not read_host().processor.has("avx512_vnni")  # u8 times s8 saturates without VNNI
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


class OnnxruntimeBackend(SessionBackend):
    name = "onnxruntime"
    engine = OnnxruntimeEngine()
    preparation = 15.0

    def available(self) -> str:
        return missing(PACKAGES, "onnxruntime")

    def lacks(self, options: Options) -> str:
        if options.precision is Precision.BFLOAT16:
            return "ONNX Runtime has no bf16 kernels for CPUs; use backend='openvino' or 'torch'"
        return ""

    def runs(self, candidate: object) -> bool:
        return any(base.__module__.startswith("optimum.onnxruntime") for base in type(candidate).__mro__)

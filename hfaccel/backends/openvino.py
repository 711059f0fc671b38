"""The backend `openvino`: Intel's OpenVINO, converted from the torch model itself, any shape.

Supports encoders in fp32, bf16 and int8. int8 is made by NNCF, which calibrates: it needs the package
`nncf` and samples of the user's inputs. Objects of optimum-intel (OVModel) run OpenVINO already and are
accepted as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hfaccel import export
from hfaccel.backends.base import Backend, Options, missing, precision_of, version
from hfaccel.outcome import Outcome

HINTS = {"fp32": "f32", "bf16": "bf16"}  # int8: what it leaves over runs in OpenVINO's default precision
MODEL = "model.xml"


class OpenvinoBackend(Backend):
    name = "openvino"
    preparation = 5.0

    def available(self) -> str:
        return missing(("openvino",), "openvino")

    def supports(self, model: nn.Module) -> str:
        return export.export_problem(model)

    def transform(self, model: nn.Module, options: Options) -> tuple[Outcome, ...]:
        precision = precision_of(options)
        problem = self.available() or self.supports(model)
        if precision == "int8":
            problem = problem or missing(("nncf",), "openvino") or _sample_problem(options)
        if problem:
            return (Outcome("model", False, problem),)
        return export.attach(model, OpenvinoEngine(), precision, options.samples)

    def restore(self, model: nn.Module) -> None:
        export.detach(model)

    def stock_calls(self, model: nn.Module) -> dict[str, int]:
        forward = export.running(model)
        return dict(forward.calls) if forward else {}

    def runs(self, candidate: Any) -> bool:
        return any(base.__module__.startswith("optimum.intel") for base in type(candidate).__mro__)


def _sample_problem(options: Options) -> str:
    if options.samples:
        return ""
    return "NNCF calibrates int8 on typical inputs; pass sample=[tokenizer(text, return_tensors='pt'), ...]"


class OpenvinoEngine(export.Engine):
    name = "openvino"

    def versions(self) -> dict[str, str]:
        return {package: version(package) for package in ("openvino", "nncf")}

    def write(
        self,
        model: export.Flat,
        interface: export.Interface,
        precision: str,
        samples: Sequence[Sequence[torch.Tensor]],
        folder: Path,
    ) -> None:
        import openvino

        with export.quiet():
            converted = openvino.convert_model(model, example_input=tuple(samples[0]))
            shapes = [
                openvino.PartialShape(
                    [-1 if number in numbers else size for number, size in enumerate(tensor.shape)]
                )
                for tensor, numbers in zip(samples[0], interface.dynamic.values(), strict=True)
            ]
            converted.reshape(dict(zip(converted.inputs, shapes, strict=True)))
            if precision == "int8":
                import nncf

                data = nncf.Dataset([tuple(tensor.numpy() for tensor in sample) for sample in samples])
                converted = nncf.quantize(
                    converted, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples)
                )
        openvino.save_model(converted, folder / MODEL, compress_to_fp16=False)

    def load(self, folder: Path, precision: str) -> export.Session:
        return OpenvinoSession(folder / MODEL, precision)


class OpenvinoSession(export.Session):
    """One compiled model; each thread has a request of its own, as OpenVINO wants it."""

    def __init__(self, path: Path, precision: str) -> None:
        import openvino

        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        if precision in HINTS:
            settings["INFERENCE_PRECISION_HINT"] = HINTS[precision]
        self.compiled = openvino.Core().compile_model(path, "CPU", settings)
        self.local = threading.local()

    def run(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        request = getattr(self.local, "request", None)
        if request is None:
            request = self.local.request = self.compiled.create_infer_request()
        results = request.infer([tensor.numpy() for tensor in inputs.values()], share_inputs=True)
        return [torch.from_numpy(results[number]) for number in range(len(self.compiled.outputs))]

"""The backend `openvino`: Intel's OpenVINO, converted from the torch model itself, any shape.

Supports encoders in fp32, bf16 and int8. int8 is made by NNCF, which calibrates: it needs the package
`nncf` and samples of the user's inputs. Objects of optimum-intel (OVModel) run OpenVINO already and are
accepted as they are.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from hfaccel import export
from hfaccel.backends.base import Options, SessionBackend, missing, version
from hfaccel.precision import Precision

# In int8, what is not quantized runs in OpenVINO's default precision.
HINTS = {Precision.FLOAT32: "f32", Precision.BFLOAT16: "bf16"}
MODEL = "model.xml"


class OpenvinoEngine(export.ExportingEngine):
    name = "openvino"

    def versions(self) -> dict[str, str]:
        return {package: version(package) for package in ("openvino", "nncf")}

    def write(self, model: export.Flat, job: export.Job, folder: Path) -> None:
        import openvino

        with export.quiet(), _nothing_sent():
            converted = openvino.convert_model(model, example_input=tuple(job.samples[0]))
            shapes = [
                openvino.PartialShape(
                    [-1 if number in numbers else size for number, size in enumerate(tensor.shape)]
                )
                for tensor, numbers in zip(job.samples[0], job.interface.dynamic.values(), strict=True)
            ]
            converted.reshape(dict(zip(converted.inputs, shapes, strict=True)))
            if job.precision is Precision.INT8:
                import nncf

                data = nncf.Dataset([tuple(tensor.numpy() for tensor in sample) for sample in job.samples])
                converted = nncf.quantize(
                    converted, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(job.samples)
                )
        openvino.save_model(converted, folder / MODEL, compress_to_fp16=False)

    def load(self, folder: Path, precision: Precision) -> export.Session:
        return OpenvinoSession(folder / MODEL, precision)


@contextlib.contextmanager
def _nothing_sent() -> Iterator[None]:
    """OpenVINO's converter and NNCF would report their use to Intel, by a fork of this process, unasked."""
    try:
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker
    except ImportError:
        yield
        return
    check = OptInChecker.check
    OptInChecker.check = lambda *arguments, **keywords: ConsentCheckResult.DECLINED
    try:
        yield
    finally:
        OptInChecker.check = check


class OpenvinoSession(export.Session):
    """One compiled model; each thread has a request of its own, as OpenVINO wants it."""

    def __init__(self, path: Path, precision: Precision) -> None:
        import openvino

        settings: dict[str, object] = {
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


class OpenvinoBackend(SessionBackend):
    name = "openvino"
    engine = OpenvinoEngine()
    preparation = 5.0

    def available(self) -> str:
        return missing(("openvino",), "openvino")

    def lacks(self, options: Options) -> str:
        if options.precision is not Precision.INT8:
            return ""
        if problem := missing(("nncf",), "openvino"):
            return problem
        if not options.samples:
            return "NNCF calibrates int8: pass sample=[tokenizer(text, return_tensors='pt'), ...]"
        return ""

    def runs(self, candidate: object) -> bool:
        return any(base.__module__.startswith("optimum.intel") for base in type(candidate).__mro__)

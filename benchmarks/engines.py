"""Other engines than torch, on an ONNX file of one BERT-base layer. Each is one row of ENGINES."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

Infer = Callable[[Any], Any]  # token ids, an array (batch, length) -> hidden states


def onnxruntime(file: str, threads: int, arena: bool = True) -> Infer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda tokens: session.run(None, {"input_ids": tokens})


def onnxruntime_without_arena(file: str, threads: int) -> Infer:
    """Its own arena never shrinks; services that must give memory back switch it off and use malloc."""
    return onnxruntime(file, threads, arena=False)


def openvino(file: str, threads: int) -> Infer:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it forks, and reaches for a network
    import openvino

    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_NUM_THREADS": threads})
    return lambda tokens: model({"input_ids": tokens})


class Engine(NamedTuple):
    load: Callable[[str, int], Infer]
    needs: str  # the package


ENGINES = {
    "onnxruntime": Engine(onnxruntime, "onnxruntime"),
    "onnxruntime, its arena off": Engine(onnxruntime_without_arena, "onnxruntime"),
    "openvino": Engine(openvino, "openvino"),
}


def missing(*packages: str) -> str:
    """Which of these packages are not installed, as a reason to skip; "" for none."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def export(file: str) -> None:
    """Write one layer of BERT-base with random weights as an ONNX file that takes any shape."""
    import torch
    from transformers import BertConfig, BertModel

    class Encoder(torch.nn.Module):
        """With one positional input and one output, which is what the exporter can name."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(BertConfig(num_hidden_layers=1))

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.bert(input_ids=input_ids)[0]
            return hidden

    dynamic = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
    tokens = torch.full((2, 16), 7)
    names = ["input_ids"]
    model = Encoder().eval()
    torch.onnx.export(model, (tokens,), file, input_names=names, dynamic_shapes=dynamic, verbose=False)

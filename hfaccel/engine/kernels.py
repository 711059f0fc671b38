"""The kernels of native/kernels, on torch's own threads; or why they cannot run here."""

from __future__ import annotations

from enum import IntEnum
from functools import cache

import torch

from hfaccel import native, upstream
from hfaccel.errors import KernelsMissing
from hfaccel.host import MAX_ISA, module_of, read_host
from hfaccel.upstream.of_torch import PARALLEL_FOR, address


class Kind(IntEnum):
    """The type of the numbers that are multiplied; the numbers of native/kernels/gemm.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2
    INT8_WEIGHT_ONLY = 3  # in groups of GROUP inputs, each with a scale of its own
    INT4_WEIGHT_ONLY = 4
    INT8_GROUPS_OF_32 = 5  # the same in smaller groups, for checkpoints that have such
    INT4_GROUPS_OF_32 = 6
    E2M1_GROUPS_OF_32 = 7  # floats of 4 bits, of which LEVELS are the numbers
    INT8_GROUPS_OF_16 = 8

    @property
    def numbers(self) -> int:
        """How many fit in a word of 32 bits."""
        return 32 // self.bits if self.is_grouped else 1 << self

    @property
    def bits(self) -> int:
        """Of a number, in kinds in groups."""
        return 4 if self in (Kind.INT4_WEIGHT_ONLY, Kind.INT4_GROUPS_OF_32, Kind.E2M1_GROUPS_OF_32) else 8

    @property
    def group(self) -> int:
        """Inputs of a group, in kinds in groups."""
        if self is Kind.INT8_GROUPS_OF_16:
            return TINY_GROUP
        return GROUP if self <= Kind.INT4_WEIGHT_ONLY else SMALL_GROUP

    @property
    def is_grouped(self) -> bool:
        return self >= Kind.INT8_WEIGHT_ONLY

    @property
    def label(self) -> str:
        """The name of the precision that it stands for (hfaccel.precision), if it is one."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def of(cls, label: str) -> Kind:
        """Raises KeyError for another label."""
        return cls[label.upper().replace("-", "_")]


GROUP, SMALL_GROUP, TINY_GROUP = 64, 32, 16  # inputs of a group
# The floats of E2M1 from -6 to 6, doubled, and plus 12; as in native/kernels/gemm_grouped.h
LEVELS = (0, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 24)
# What a cache holds, as enum number in native/kernels/vector.h
NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


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
    RELU_SQUARED = 8


# class name (of torch or transformers) -> what the kernels compute in its place
ACTIVATIONS = {
    "GELUActivation": Activation.GELU,
    "GELU": Activation.GELU,
    "GELUTanh": Activation.GELU_TANH,
    "PytorchGELUTanh": Activation.GELU_TANH,
    "NewGELUActivation": Activation.GELU_TANH,
    "FastGELUActivation": Activation.GELU_TANH,
    "QuickGELUActivation": Activation.QUICK_GELU,
    "BloomGelu": Activation.GELU_TANH,
    "ReLU": Activation.RELU,
    "ReLUSquaredActivation": Activation.RELU_SQUARED,
    "SiLU": Activation.SILU,
    "SiLUActivation": Activation.SILU,
    "Tanh": Activation.TANH,
}


@cache
def set_in_use() -> str:
    """The instruction set whose kernels compute here (host.KERNEL_SETS); "" where there are none."""
    return _loaded()[1]


def kernels() -> native.Kernels:
    """The kernels. Raises KernelsMissing where there are none: nobody reaches an instruction that the CPU
    lacks."""
    loaded = _loaded()[0]
    if loaded is None:
        raise KernelsMissing(kernels_problem())
    return loaded


def kernels_problem() -> str:
    """Why no kernels can be used here; "" where some can."""
    loaded, _, problem = _loaded()
    return problem if loaded is None else _use_torch_threads()


def multiplies(kind: Kind) -> bool:
    """Whether numbers of this kind are multiplied by instructions of their own. Otherwise weights are stored
    in the kind, and widened as they are read: that pays where memory is the limit. It always is for kinds in
    groups, of which every set multiplies whole numbers."""
    if kernels_problem():
        return False
    if kind is Kind.FLOAT32 or kind.is_grouped:
        return True
    return bool(kernels().DOT_BF16 if kind is Kind.BFLOAT16 else kernels().DOT_I8)


WIDEST_PANEL = 32  # of all sets: parts of a weight that begin at its multiples suit any of them


def panel() -> int:
    """Columns of a packed weight that lie together in the set in use (native/kernels/gemm.h)."""
    loaded = _loaded()[0]
    return loaded.PANEL if loaded else WIDEST_PANEL


@cache
def _loaded() -> tuple[native.Kernels | None, str, str]:
    processor = read_host().processor
    if not processor.kernel_sets:
        cap = f"; {MAX_ISA}={processor.kernel_cap}" if processor.kernel_cap else ""
        isa = " ".join(processor.isa) or "none of interest"
        return None, "", f"there are no kernels for this CPU's instructions ({isa}){cap}"
    modules = {module_of(name): name for name in processor.kernel_sets}
    loaded, module, problem = native.load_kernels(modules)
    if loaded is not None:
        sizes = [cache.size for cache in read_host().topology.caches if cache.level == 2 and cache.size]
        if sizes:
            loaded.use_cache(sizes[0])
    return loaded, modules.get(module, ""), problem


@cache
def _use_torch_threads() -> str:
    if problem := upstream.problem(upstream.Need.ENGINE):
        return problem
    if "parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return "this torch does not compute with OpenMP's threads, which the kernels need"
    kernels().use_threads(address(PARALLEL_FOR.value()))
    return ""

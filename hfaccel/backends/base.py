"""What a backend is. This docstring is the manual for writing one; docs/backends.md walks through it.

A backend is one class in one file. It must work, or say why not, without raising:

- `available()` answers why the backend cannot run on this machine ("" if it can): a missing package, a
  missing instruction set. It imports nothing heavy: it is asked before anything is decided.
- `supports(model)` answers why it leaves this model alone ("" if it does not).
- `transform(model, options)` changes the model in place and returns what it did, what it did not, and
  why. The model's class, its parameters' names and values, and what it returns stay equal.
- `restore(model)` undoes `transform`: values bit for bit, the original classes and layout.

`preparation` is roughly how many seconds `transform` takes for a BERT-base that it has never seen. "auto"
takes a backend that needs more than none only after measuring that it pays (hfaccel.selection).

Register it with `hfaccel.backends.register(MyBackend())`, or let installing your package do so by an
entry point in the group `hfaccel.backends`.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import torch
from torch import nn

from hfaccel import export
from hfaccel.host import read_host
from hfaccel.outcome import Outcome
from hfaccel.precision import Precision, asked_for

BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    huge_pages: bool = True
    dtype: torch.dtype | None = None  # of multiplications; None: the checkpoint's
    quantization: str | None = None  # a value of hfaccel.precision.QUANTIZED
    unpad: bool | str = "auto"  # whether padding is left out; "auto": where nobody can read it
    samples: tuple[Mapping[str, torch.Tensor], ...] = ()  # typical inputs; the first stands for the shapes
    kv_cache: str = "auto"  # in which numbers decoders keep keys and values; "auto": those of attention

    @property
    def precision(self) -> Precision | None:
        """`dtype` and `quantization` in one; None: the checkpoint's."""
        return asked_for(self.dtype, self.quantization)

    @property
    def rounds(self) -> bool:
        """Whether weights are rounded: then the given model must keep its own."""
        return self.precision not in (None, Precision.FLOAT32)


class Backend(ABC):
    name: str
    preparation: float = 0.0

    @abstractmethod
    def available(self) -> str: ...

    @abstractmethod
    def supports(self, model: nn.Module) -> str: ...

    @abstractmethod
    def transform(self, model: nn.Module, options: Options) -> tuple[Outcome, ...]: ...

    @abstractmethod
    def restore(self, model: nn.Module) -> None: ...

    def stock_calls(self, model: nn.Module) -> dict[str, int]:
        """Calls that took the model's own path although it was transformed: reason -> count."""
        return {}

    def padded_calls(self, model: nn.Module) -> dict[str, int]:
        """Calls that had padding and computed it although it is left out elsewhere: reason -> count."""
        return {}

    def runs(self, candidate: object) -> bool:
        """Whether this object, which is no torch module, is run by the backend's engine already."""
        return False


class SessionBackend(Backend):
    """A backend that lets another engine run the forward of whole encoders. The model keeps its weights."""

    engine: export.Engine

    def supports(self, model: nn.Module) -> str:
        return export.export_problem(model)

    def lacks(self, options: Options) -> str:
        """Why the engine cannot do what is asked for; "" if it can."""
        return ""

    def transform(self, model: nn.Module, options: Options) -> tuple[Outcome, ...]:
        precision = options.precision or Precision.FLOAT32
        problem = self.available() or self.supports(model) or self.lacks(options)
        problem = problem or too_slow(precision) or weight_only(precision)
        if problem:
            return (Outcome("model", False, problem),)
        return export.attach(model, self.engine, precision, options.samples)

    def restore(self, model: nn.Module) -> None:
        export.detach(model)

    def stock_calls(self, model: nn.Module) -> dict[str, int]:
        forward = export.running(model)
        return dict(forward.calls) if forward else {}


def too_slow(precision: Precision) -> str:
    """bf16 on a CPU that has no instructions for it is emulated, hundreds of times slower than fp32."""
    if precision is not Precision.BFLOAT16 or any(read_host().processor.has(flag) for flag in BF16_FLAGS):
        return ""
    return f"the CPU has none of {', '.join(BF16_FLAGS)}: bfloat16 would be slower than float32"


def weight_only(precision: Precision) -> str:
    """What is exported has weights and activations of one kind."""
    if not precision.is_weight_only:
        return ""
    return f"this backend has no {precision}; use backend='torch', or quantization='int8'"


def missing(packages: tuple[str, ...], extra: str) -> str:
    """Why a backend that needs these packages cannot run; "" where all are installed."""
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if not absent:
        return ""
    return f"{', '.join(absent)} not installed; pip install 'hfaccel[{extra}]'"


def version(package: str) -> str:
    """The installed version; "" where it is not installed."""
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return ""

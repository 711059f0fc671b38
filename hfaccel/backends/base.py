"""What a backend is. This docstring is the manual for writing one; docs/backends.md walks through it.

A backend is one class in one file. It must work, or say why not, without raising:

- `available()` answers why the backend cannot run on this machine ("" if it can): a missing package, a
  missing instruction set.
- `supports(model)` answers why it leaves this model alone ("" if it does not).
- `transform(model, options)` changes the model in place and returns what it did, what it did not, and
  why. The model's class, its parameters' names and values, and what it returns stay equal.
- `restore(model)` undoes `transform`: values bit for bit, the original classes and layout.

Register it with `hfaccel.backends.register(MyBackend())`, or let installing your package do so by an
entry point in the group `hfaccel.backends`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from hfaccel.outcome import Outcome


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    huge_pages: bool = True
    dtype: torch.dtype | None = None  # of multiplications; None: the checkpoint's
    quantization: str | None = None  # "int8"
    unpad: bool = True  # whether padding may be left out of the computation

    @property
    def rounds(self) -> bool:
        """Whether weights are rounded: then the given model must keep its own."""
        return self.quantization is not None or self.dtype is torch.bfloat16


class Backend(ABC):
    name: str

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

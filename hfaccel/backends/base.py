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
    """What the user asked for.

    `dtype`: None keeps the model's. `quantization`: None or "int8". `unpad`: True, False or None (decide).
    """

    huge_pages: bool = True
    dtype: torch.dtype | None = None
    quantization: str | None = None
    unpad: bool | None = None


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

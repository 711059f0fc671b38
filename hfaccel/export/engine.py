"""What an engine must be able to do with a model: open a session of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from hfaccel.export.interface import Interface
from hfaccel.outcome import Outcome
from hfaccel.precision import Precision

NOT_OPENED = Outcome("export", False, "not opened yet")


class Session(ABC):
    """A loaded model. May be called from several threads at once."""

    @abstractmethod
    def run(self, inputs: dict[str, torch.Tensor]) -> Sequence[torch.Tensor]:
        """Contiguous int64 and float32 tensors in the interface's order -> its outputs, float32."""


@dataclass
class Job:
    """What a session is opened with, besides the model: `weights` is its fingerprint.

    `samples` are complete inputs in the interface's order. `opened` says what opening did.
    """

    interface: Interface
    precision: Precision
    samples: list[list[torch.Tensor]]
    weights: str
    opened: Outcome = field(default=NOT_OPENED)


class Engine(ABC):
    """A family of sessions. Its instances hold no state: they are pickled with the models that they run."""

    name: str

    @abstractmethod
    def open(self, model: nn.Module, job: Job) -> Session:
        """A session of torch.get_num_threads() threads. Raises whatever goes wrong."""

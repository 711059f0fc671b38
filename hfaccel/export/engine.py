"""What an engine must be able to do with a model: write it to a folder, and load it from there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch

from hfaccel.export.interface import Flat, Interface


class Session(ABC):
    """A loaded model. May be called from several threads at once."""

    @abstractmethod
    def run(self, inputs: dict[str, torch.Tensor]) -> Sequence[torch.Tensor]:
        """Contiguous int64 and float32 tensors in the interface's order -> its outputs, float32."""


class Engine(ABC):
    """A family of sessions. Its instances hold no state: they are pickled with the models that they run."""

    name: str

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """What an export depends on besides torch and transformers: package -> version."""

    @abstractmethod
    def write(
        self,
        model: Flat,
        interface: Interface,
        precision: str,
        samples: Sequence[Sequence[torch.Tensor]],
        folder: Path,
    ) -> None:
        """Export to files in `folder`. The first of `samples` serves as example, all for calibration."""

    @abstractmethod
    def load(self, folder: Path, precision: str) -> Session:
        """A session of torch.get_num_threads() threads. It may not need the folder after that."""

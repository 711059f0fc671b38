"""Engines that read a model from files: exported once, found in the cache from then on."""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from hfaccel import engine as packed
from hfaccel.cache import Cache
from hfaccel.export.engine import Engine, Job, Session
from hfaccel.export.fingerprint import key
from hfaccel.export.interface import Flat
from hfaccel.outcome import Outcome
from hfaccel.precision import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ExportingEngine(Engine):
    @abstractmethod
    def versions(self) -> dict[str, str]:
        """What an export depends on besides torch and transformers: package -> version."""

    @abstractmethod
    def write(self, model: Flat, job: Job, folder: Path) -> None:
        """Export to files in `folder`. The first of the samples is the example, all are for calibration."""

    @abstractmethod
    def load(self, folder: Path, precision: Precision) -> Session:
        """A session of what `write` wrote. It may not need the folder after that."""

    def open(self, model: nn.Module, job: Job) -> Session:
        with Cache().entry(self._key(model, job), partial(self._write, model, job)) as entry:
            reason = entry.problem or ("found in the cache" if entry.found else "kept in the cache")
            job.opened = Outcome("export", not entry.problem, reason)
            return self.load(entry.path, job.precision)

    def _key(self, model: PreTrainedModel, job: Job) -> str:
        """bf16 runs from the fp32 export; int8 depends on what it was calibrated with."""
        versions = {name: version(name) for name in ("hfaccel", "torch", "transformers")} | self.versions()
        return key(
            job.weights,
            engine=self.name,
            versions=versions,
            model=[
                type(model).__module__,
                type(model).__qualname__,
                model.config.to_json_string(),
                repr(model),
            ],
            interface=job.interface.to_key(),
            calibration=_digest(job.samples) if job.precision is Precision.INT8 else "",
        )

    def _write(self, model: nn.Module, job: Job, folder: Path) -> None:
        flat = Flat(unpacked(model), tuple(job.interface.inputs), job.interface.outputs).eval()
        self.write(flat, job, folder)


def unpacked(model: nn.Module) -> nn.Module:
    """The model in ordinary layout: a copy where hfaccel's own engine has packed weights that it shares."""
    if not any(type(module).__module__.startswith(packed.__name__) for module in model.modules()):
        return model
    other = copy.deepcopy(model)
    packed.restore(other)
    return other


def _digest(samples: Sequence[Sequence[torch.Tensor]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        for tensor in sample:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()

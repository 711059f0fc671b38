"""The backend `eager`: leaves the model as it is. The reference that the others are compared with."""

from __future__ import annotations

from torch import nn

from hfaccel.backends.base import Backend, Options
from hfaccel.outcome import Outcome


class EagerBackend(Backend):
    name = "eager"

    def available(self) -> str:
        return ""

    def supports(self, model: nn.Module) -> str:
        return ""

    def transform(self, model: nn.Module, options: Options) -> tuple[Outcome, ...]:
        return ()

    def restore(self, model: nn.Module) -> None:
        pass

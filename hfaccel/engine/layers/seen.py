"""Values that the layers of one model compute once from tensors that all of them are given."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn

from hfaccel.engine.calls.followed import Followed
from hfaccel.engine.calls.last_seen import LastSeen
from hfaccel.engine.calls.ragged import Sequences


class Seen:
    """Shared by the fused layers of one model only. A copy of the model starts empty."""

    def __init__(self) -> None:
        self.masks: LastSeen[Sequences | str] = LastSeen()
        self.followed: LastSeen[Followed | str] = LastSeen()
        self.spans: LastSeen[torch.Tensor | str | None] = LastSeen()
        self.distances: LastSeen[torch.Tensor | str] = LastSeen()
        self.embeddings: LastSeen[torch.Tensor] = LastSeen()

    def __reduce__(self) -> tuple[type[Seen], tuple[()]]:
        return Seen, ()


_of_models: WeakKeyDictionary[nn.Module, Seen] = WeakKeyDictionary()


def seen_by(model: nn.Module) -> Seen:
    """The values that this model's layers share; made when its first layer is fused."""
    return _of_models.setdefault(model, Seen())

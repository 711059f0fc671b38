"""Models that torch.compile leaves as they are, because packed linear layers are all over their forwards.

A packed layer is no part of a graph of torch. A decoder would be cut into hundreds of graphs, and entering
them costs more than is gained by the few operations between two layers. A compiled model of that kind calls
its own forward, in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.layer import FusedLayer
from hfaccel.engine.linear import PackedModule, outside_graphs
from hfaccel.engine.region import Region
from hfaccel.engine.swapped import Swapped, swap


class OutsideModel(Swapped):
    """Mixed into the class of such a model."""

    hfaccel_keeps_name: ClassVar[bool] = True  # it is written into checkpoints

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() and not self.training:
            return outside_of_graphs(self, args, kwargs)
        return super().forward(*args, **kwargs)


@outside_graphs
def outside_of_graphs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The whole call: what torch.compile makes of the few operations around packed layers takes longer."""
    return type(model).forward(model, *args, **kwargs)


def keep_outside(model: nn.Module) -> None:
    """Let torch.compile leave alone every model in this one whose own layers are packed."""
    for module in list(model.modules()):
        if (
            hasattr(module, "save_pretrained")
            and not isinstance(module, Region | Swapped)
            and any(_own(module))
        ):
            swap(module, OutsideModel)


def _own(module: nn.Module) -> Iterator[bool]:
    """Whether each part is packed, but those of fused layers and of models that look after themselves."""
    for child in module.children():
        if not isinstance(child, FusedLayer | Swapped):
            yield isinstance(child, PackedModule)
            yield from _own(child)
